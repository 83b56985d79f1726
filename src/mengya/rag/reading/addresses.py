"""A web page, or a file on the web, by its address: never one inside the own network.

Whoever may name an address could otherwise make this machine ask others for them. So every name is resolved once, all
its addresses are checked, and the connection goes to the address that was checked; a redirect is a new address.
"""

import asyncio
import codecs
import contextlib
import ipaddress
import re
import socket
import tempfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from mengya.errors import UserError
from mengya.rag.document import Document
from mengya.rag.reading.encodings import codec_of
from mengya.rag.reading.limits import Limits
from mengya.rag.reading.worker import Progress, read_file

if TYPE_CHECKING:
    import httpx

Resolve = Callable[[str, int], list[str]]
"""(host name, port) -> its addresses. OSError: there is no such name."""

_MOST_REDIRECTS = 5
_REDIRECTS = (301, 302, 303, 307, 308)
_NUMERIC = re.compile(r"(0x[0-9a-f]*|\d+)(\.(0x[0-9a-f]*|\d+))*\.?", re.IGNORECASE)
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")


def resolved(host: str, port: int) -> list[str]:
    return [str(found[4][0]) for found in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)]


def is_public(address: str) -> bool:
    """Whether an IP address is one of the open network: not private, not this machine, not reserved, and no IPv6
    address with such an IPv4 address inside."""
    ip = ipaddress.ip_address(address)
    if isinstance(ip, ipaddress.IPv6Address):
        inner = ip.ipv4_mapped or ip.sixtofour or (ip.teredo[1] if ip.teredo else None)
        if ip in _NAT64:
            inner = ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)
        if inner is not None:
            return is_public(str(inner))
        if ip.is_site_local:
            return False
    return ip.is_global and not (ip.is_reserved or ip.is_multicast or ip.is_link_local or ip.is_unspecified)


def read_address(
    url: str,
    limits: Limits | None = None,
    progress: Progress | None = None,
    resolve: Resolve = resolved,
    allowed: Callable[[str], bool] = is_public,
) -> Document:
    """What an http(s) address holds, read like a file by that name. Call it only where the operator has allowed it.

    `allowed` says of each IP address whether it may be asked. UserError: an address that is refused or does not
    answer, or whose content is too large, slow, or not read. Blocks; not for a thread with an event loop.
    """
    limits, progress = limits or Limits(), progress or (lambda done, pages: None)
    try:
        import httpx
    except ImportError as error:
        raise UserError("web addresses need the library httpx; pip install 'mengya[documents]'") from error

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "page"
        try:
            asyncio.run(_Fetch(limits, progress, resolve, allowed).fetch(url, path))
        except (httpx.InvalidURL, ValueError) as error:
            raise UserError(f"{url}: this is no web address; it looks like https://example.com/page") from error
        except (httpx.HTTPError, zlib.error) as error:
            raise UserError(f"{url}: it does not answer ({type(error).__name__}); check the address") from error
        except TimeoutError as error:
            raise UserError(f"{url}: it took longer than {limits.address_seconds:g} seconds; try again") from error
        return read_file(path, url, limits, progress)


class _Fetch:
    def __init__(self, limits: Limits, progress: Progress, resolve: Resolve, allowed: Callable[[str], bool]) -> None:
        self._limits, self._progress, self._resolve, self._allowed = limits, progress, resolve, allowed

    async def fetch(self, text: str, path: Path) -> None:
        import httpx

        async with asyncio.timeout(self._limits.address_seconds):
            url = httpx.URL(text.strip())
            # The environment may name proxies, which would connect to what was not checked.
            async with httpx.AsyncClient(trust_env=False, timeout=self._limits.address_seconds) as client:
                for _ in range(_MOST_REDIRECTS + 1):
                    following = await self._hop(client, url, path)
                    if following is None:
                        return
                    url = following
        raise UserError(f"{text}: more than {_MOST_REDIRECTS} redirects; use the address at the end of them")

    async def _hop(self, client: "httpx.AsyncClient", url: "httpx.URL", path: Path) -> "httpx.URL | None":
        """Ask one address. The one it redirects to; None if the content has been saved."""
        address = await self._checked(url)
        host = url.raw_host.decode("ascii")
        # Asked by number, with the name for the server and for its certificate.
        request = client.build_request(
            "GET",
            url.copy_with(host=address, fragment=None),
            headers={"Host": url.netloc.decode("ascii"), "Accept-Encoding": "identity", "User-Agent": "mengya"},
            extensions={"sni_hostname": host} if url.scheme == "https" else {},
        )
        answer = await client.send(request, stream=True)
        try:
            if answer.status_code in _REDIRECTS and "location" in answer.headers:
                return url.join(answer.headers["location"])
            if answer.status_code != 200:
                raise UserError(f"{url}: the server answers {answer.status_code}; check the address in a browser")
            await self._save(answer, url, path)
        finally:
            await answer.aclose()
        return None

    async def _checked(self, url: "httpx.URL") -> str:
        """The IP address to connect to."""
        host = url.raw_host.decode("ascii")
        if url.scheme not in ("http", "https") or not host:
            raise UserError(f"{url}: only addresses that begin with http:// or https:// are read")
        if url.userinfo:
            raise UserError(f"{url.copy_with(userinfo=b'')}: an address with a user name in it is not read")
        port = url.port or (443 if url.scheme == "https" else 80)
        try:
            addresses = [str(ipaddress.ip_address(host))]
        except ValueError:
            if _NUMERIC.fullmatch(host):
                raise UserError(f"{url}: this address is a number; write the name of the server") from None
            try:
                addresses = await asyncio.to_thread(self._resolve, host, port)
            except OSError as error:
                raise UserError(f"{url}: there is no server of the name {host}; check the address") from error
        if not addresses or not all(map(self._allowed, addresses)):
            raise UserError(f"{url}: this address is inside this machine or its network, and is not read")
        return addresses[0]

    async def _save(self, answer: "httpx.Response", url: "httpx.URL", path: Path) -> None:
        most = self._limits.file_bytes
        packed = answer.headers.get("content-encoding", "identity").lower()
        if packed not in ("identity", "gzip", "deflate"):
            raise UserError(f"{url}: it is packed as {packed}, which is not read; download it and add the file")
        unpack = zlib.decompressobj(47) if packed != "identity" else None
        content = bytearray()
        async for piece in answer.aiter_raw():
            content += unpack.decompress(piece, most + 1 - len(content)) if unpack and len(content) <= most else piece
            if len(content) > most:
                raise UserError(f"{url}: it is larger than {most / (1 << 20):,.1f} MB, the most that is read")
            self._progress(0, 0)
        path.write_bytes(_in_utf8(bytes(content), answer.headers.get("content-type", "")))


def _in_utf8(content: bytes, content_type: str) -> bytes:
    """Text whose encoding stands only in the head of the answer, with a byte order mark that says what it is now."""
    found = re.match(r"text/.*charset=[\"']?([\w-]+)", content_type, re.IGNORECASE)
    if not found or content.startswith((codecs.BOM_UTF8, codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return content
    with contextlib.suppress(LookupError, UnicodeDecodeError):  # a wrong name: the content itself decides
        return codecs.BOM_UTF8 + content.decode(codec_of(found[1])).encode("utf-8")
    return content
