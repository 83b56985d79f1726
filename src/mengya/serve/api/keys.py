"""Who may ask: keys, of which only hashes are kept, and how often each may."""

import hashlib
import hmac
import re
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from mengya.errors import UserError


class Keys:
    """Keys by their SHA-256; each may be used `per_minute` times a minute, also all at once (a token bucket)."""

    def __init__(
        self,
        hashes: Mapping[str, str],
        per_minute: int | None = None,
        clock: Callable[[], float] = time.monotonic,
    ):
        """`hashes`: hexadecimal digest -> name."""
        self._hashes = {bytes.fromhex(digest): name for digest, name in hashes.items()}
        self._per_minute, self._clock = per_minute, clock
        self._left = {name: (float(per_minute or 0), clock()) for name in self._hashes.values()}

    @staticmethod
    def read(path: Path, per_minute: int | None = None) -> "Keys":
        """From a file with a line for each key: its SHA-256 in hexadecimal and, if wanted, a name. # begins a comment.
        UserError if a line is something else, such as a key."""
        try:
            lines = path.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"api_keys={path} cannot be read ({error}); give a text file of hashes") from error
        hashes: dict[str, str] = {}
        for number, line in enumerate(lines, 1):
            words = line.partition("#")[0].split(maxsplit=1)
            if not words:
                continue
            if not re.fullmatch(r"[0-9a-fA-F]{64}", words[0]):  # the line itself may be a secret
                raise UserError(
                    f"line {number} of {path} is not a SHA-256 hash of 64 hexadecimal digits; "
                    "write that of each key: printf %s KEY | sha256sum"
                )
            hashes[words[0].lower()] = words[1].strip() if len(words) > 1 else f"key {len(hashes) + 1}"
        if not hashes:
            raise UserError(f"{path} has no keys; write the hash of each: printf %s KEY | sha256sum")
        return Keys(hashes, per_minute)

    def name_of(self, authorization: str | None) -> str | None:
        """The name of the key in an Authorization header (decoded as Latin-1, as headers are); None if it is missing or
        unknown.

        All hashes are compared, in constant time."""
        scheme, _, key = (authorization or "").partition(" ")
        digest = hashlib.sha256(key.strip().encode("latin-1", "replace")).digest()
        found = None
        for known, name in self._hashes.items():
            if hmac.compare_digest(known, digest):
                found = name
        return found if scheme.lower() == "bearer" else None

    def has(self, name: str) -> bool:
        return name in self._left

    def wait(self, name: str) -> float:
        """Takes one use of a key. Seconds until there is one if none is left; 0: taken."""
        if self._per_minute is None:
            return 0.0
        left, then = self._left[name]
        now = self._clock()
        left = min(float(self._per_minute), left + (now - then) * self._per_minute / 60)
        self._left[name] = (left - 1, now) if left >= 1 else (left, now)
        return 0.0 if left >= 1 else (1 - left) * 60 / self._per_minute
