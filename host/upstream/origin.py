"""URLs: which origin a request goes to, through which proxy, and what of it stands on the request line."""

import re
from dataclasses import dataclass
from typing import Final, TypeAlias
from urllib.parse import unquote, urlsplit

from host.upstream.errors import InvalidRequest

_DEFAULT_PORTS: Final = {"http": 80, "https": 443}
_PROXY_PORTS: Final = {"http": 80, "https": 443, "socks4": 1080, "socks4a": 1080, "socks5": 1080, "socks5h": 1080}
_NO_PROXY_WORDS: Final = frozenset({"", "direct", "none"})
# Anything outside visible ASCII could end the request line or mean something else to the next hop.
_UNSAFE: Final = re.compile(r"[^\x21-\x7e]").search
# A "/" before this index belongs to "http://" or "https://".
_AFTER_SCHEME: Final = len("http://")


@dataclass(frozen=True, slots=True)
class ProxyAddress:
    """An outbound proxy. `label` is what may be shown: no user, no password."""

    scheme: str
    host: str
    port: int
    username: str | None
    password: str | None
    label: str


@dataclass(frozen=True, slots=True, eq=False)
class Origin:
    """Where connections go. Compared by identity, because it is looked up on every request; the pool makes only one
    for each distinct `key`, whose connections are then shared.

    `request_line_end` is the constant part of every request head to this origin: HTTP version and Host field.
    """

    secure: bool
    host: str
    port: int
    proxy: ProxyAddress | None
    label: str
    request_line_end: str
    public_only: bool = False

    @property
    def key(self) -> "OriginKey":
        return (self.secure, self.host, self.port, self.proxy, self.public_only)


OriginKey: TypeAlias = tuple[bool, str, int, ProxyAddress | None, bool]


def split_url(url: str) -> tuple[str, str]:
    """`https://host/path?query#x` -> (`https://host`, `/path?query`). Raises InvalidRequest on anything unsafe."""
    if _UNSAFE(url):
        raise InvalidRequest("the URL holds a blank, a control character or a character that is not percent-encoded")
    if "#" in url:
        url = url[: url.index("#")]
    path_at = url.find("/", _AFTER_SCHEME + 1)
    query_at = url.find("?")
    if query_at >= 0 and not 0 <= path_at < query_at:
        return url[:query_at], "/" + url[query_at:]
    if path_at < 0:
        return url, "/"
    return url[:path_at], url[path_at:]


def check_base_url(url: str) -> None:
    """Raises InvalidRequest for what no request could be sent to: no scheme, no host, a port that is none."""
    if "?" in url or "#" in url:
        raise InvalidRequest("paths are appended to it, so it ends before `?` and `#`")
    origin, _ = split_url(url)
    parse_origin(origin, None)


def parse_origin(base_url: str, proxy_url: str | None, *, public_only: bool = False) -> Origin:
    """First half of `split_url` and a proxy setting -> Origin. Raises InvalidRequest."""
    try:
        parts = urlsplit(base_url)
        port = parts.port
    except ValueError as exc:
        raise InvalidRequest("the URL's host or port is malformed") from exc
    if parts.scheme not in _DEFAULT_PORTS:
        raise InvalidRequest("the URL is not an http or https URL")
    if not parts.hostname or parts.path:
        raise InvalidRequest("the URL has no host")
    if "@" in parts.netloc:
        raise InvalidRequest("the URL carries user info; credentials belong in headers")
    host = _ascii_host(parts.hostname)
    bracketed = f"[{host}]" if ":" in host else host
    default_port = _DEFAULT_PORTS[parts.scheme]
    if port is None:
        port = default_port
    authority = bracketed if port == default_port else f"{bracketed}:{port}"
    return Origin(
        secure=parts.scheme == "https",
        host=host,
        port=port,
        proxy=parse_proxy(proxy_url),
        label=f"{parts.scheme}://{bracketed}:{port}",
        request_line_end=f" HTTP/1.1\r\nHost: {authority}\r\n",
        public_only=public_only,
    )


def parse_proxy(proxy_url: str | None) -> ProxyAddress | None:
    """A proxy setting -> address, or None for "no proxy". Raises InvalidRequest: an unknown kind is never "direct"."""
    if proxy_url is None or proxy_url.strip().lower() in _NO_PROXY_WORDS:
        return None
    try:
        parts = urlsplit(proxy_url.strip())
        port = parts.port
    except ValueError as exc:
        raise InvalidRequest("the proxy URL's host or port is malformed") from exc
    if parts.scheme not in _PROXY_PORTS or not parts.hostname:
        raise InvalidRequest("the proxy URL is not an http, https, socks4, socks4a, socks5 or socks5h URL with a host")
    host = _ascii_host(parts.hostname)
    if port is None:
        port = _PROXY_PORTS[parts.scheme]
    return ProxyAddress(
        scheme=parts.scheme,
        host=host,
        port=port,
        username=None if parts.username is None else unquote(parts.username),
        password=None if parts.password is None else unquote(parts.password),
        label=f"{parts.scheme}://{host}:{port}",
    )


def _ascii_host(host: str) -> str:
    if ":" in host:
        return host
    try:
        ascii_host = host.encode("idna").decode("ascii")
    except UnicodeError as exc:
        raise InvalidRequest("the host name is malformed") from exc
    if _UNSAFE(ascii_host):
        raise InvalidRequest("the host name is malformed")
    return ascii_host
