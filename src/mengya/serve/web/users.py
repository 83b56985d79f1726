"""Who somebody is: a signed cookie, which names the owner of what they write."""

import hashlib
import hmac
import os
import secrets
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from mengya.errors import UserError
from mengya.serve.api.keys import Keys
from mengya.serve.web.store import Store

_GUESSES, _GUESSES_SECONDS = 10, 60
"""Wrong keys that one address may give in so many seconds."""
_DAYS = 400
"""As long as browsers keep a cookie."""


class Guesses:
    """Who has given too many wrong keys of late."""

    def __init__(self, clock: Callable[[], float] = time.monotonic):
        self._clock, self._wrong = clock, dict[str, list[float]]()

    def wait(self, address: str) -> float:
        """Seconds until this address may try again; 0: at once."""
        since = self._clock() - _GUESSES_SECONDS
        self._wrong = {a: recent for a, times in self._wrong.items() if (recent := [t for t in times if t > since])}
        times = self._wrong.get(address, [])
        return times[-_GUESSES] - since if len(times) >= _GUESSES else 0.0

    def wrong(self, address: str) -> None:
        self._wrong.setdefault(address, []).append(self._clock())


class Visitor(NamedTuple):
    owner: str
    session: str
    """From signing in to signing out; "": a browser's from before there were sessions, which does not end."""


class Users:
    """With keys, each name in their file is a user; without, each browser is one."""

    def __init__(self, secret: bytes, store: Store, keys: Keys | None = None):
        """`store`: for the sessions that have ended."""
        self._secret, self._store, self._keys = secret, store, keys
        self._ended = {row["session"] for row in store.read("SELECT session FROM ended")}
        self.cookie = f"mengya-{hashlib.sha256(b'cookie' + secret).hexdigest()[:8]}"
        """Its name: a browser sends the cookies of all ports of a machine to each of them."""

    @property
    def needs_key(self) -> bool:
        return self._keys is not None

    def newcomer(self) -> str | None:
        """The owner that somebody without a cookie becomes; None: a key is asked for."""
        return None if self._keys else f"browser:{secrets.token_urlsafe(16)}"

    def with_key(self, key: str) -> str | None:
        """The owner of a key; None if there is no such key."""
        name = self._keys.name_of(f"Bearer {key}") if self._keys else None
        return None if name is None else f"user:{name}"

    def sign(self, owner: str, session: str = "") -> str:
        """The value of a cookie, of a session that goes on, or of a new one."""
        until = int(time.time()) + _DAYS * 86400
        words = f"{owner.encode().hex()}.{until}.{session or secrets.token_urlsafe(16)}"
        return f"{words}.{self._seal(words)}"

    def visitor(self, cookie: str | None) -> Visitor | None:
        """Whom a cookie names; None if it is not ours, too old, of a user that is no more, or of a session that has
        ended."""
        words, _, seal = (cookie or "").rpartition(".")
        if not hmac.compare_digest(self._seal(words).encode(), seal.encode("utf-8", "replace")):
            return None
        name, until, *more = words.split(".")
        session = more[0] if more else ""
        owner = bytes.fromhex(name).decode()
        kind, _, user = owner.partition(":")
        known = self._keys.has(user) and kind == "user" and session if self._keys else kind == "browser"
        return Visitor(owner, session) if known and int(until) > time.time() and not self.ended(session) else None

    def end(self, session: str) -> None:
        """No cookie of it is good any more, in whatever browser. sqlite3.Error: only until the server is started
        anew."""
        if not session:
            return
        self._ended.add(session)
        with self._store.write() as db:
            db.execute("DELETE FROM ended WHERE at < ?", (time.time() - self.seconds,))  # no cookie lives so long
            db.execute("INSERT OR IGNORE INTO ended VALUES (?, ?)", (session, time.time()))

    def ended(self, session: str) -> bool:
        return session in self._ended

    @property
    def seconds(self) -> int:
        return _DAYS * 86400

    def _seal(self, words: str) -> str:
        return hmac.new(self._secret, words.encode("utf-8", "replace"), hashlib.sha256).hexdigest()


def secret_of(folder: Path) -> bytes:
    """The secret of a data folder, made if there is none, that its owner alone can read. UserError."""
    path = folder / "secret"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not path.exists():
            partial = path.with_name(f"secret.{os.getpid()}")
            partial.touch(mode=0o600)
            partial.write_bytes(secrets.token_bytes(32))
            partial.replace(path)
        secret = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path} cannot be used ({error}); choose another directory with --data") from error
    if len(secret) < 32:
        raise UserError(f"{path} is damaged; delete it, and everybody signs in anew")
    return secret
