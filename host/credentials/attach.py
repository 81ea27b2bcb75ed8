"""Putting a credential's secret onto a request, towards the hosts bound to it and nobody else."""

from collections.abc import Sequence
from typing import Final
from urllib.parse import parse_qsl, urlencode, urlsplit, urlunsplit

from msgspec import Struct

from host.credentials.records import Credential
from host.credentials.secret import Secret
from pluginabi.errors import host_error
from pluginabi.immutable import EMPTY_HEADERS, Headers

_DEFAULT_PORT = {"https": 443, "http": 80}


class Signed(Struct, frozen=True):
    """A request with its credential. `headers` and `url` may hold the secret: never log them."""

    url: str
    headers: list[tuple[str, str]]
    proxy_url: str | None

    def __repr__(self) -> str:
        return "Signed(***)"


class Signer:
    """Signs with one credential; what is the same for every request is worked out once."""

    __slots__ = ("_added", "_copied", "_credential", "_origin", "_origin_url", "_replaced")

    def __init__(self, credential: Credential) -> None:
        self._credential: Final = credential
        self._origin: Final = origin_of(credential.base_url)
        start = _origin_url(credential.base_url) if self._origin is not None else ""
        self._origin_url: Final = start if origin_of(start) == self._origin else ""
        added = [(name, _literal(value)) for name, value in credential.headers if not _is_copy(value)]
        self._copied: Final = [(name, value[1:].lower()) for name, value in credential.headers if _is_copy(value)]
        """Headers whose value is the client's: name, and the client's name for it."""
        secret = credential.secret
        if secret is not None and credential.secret_place in ("bearer", "header"):
            added = [(name, value) for name, value in added if name != credential.secret_name]
            self._copied[:] = [(name, source) for name, source in self._copied if name != credential.secret_name]
            added.append((credential.secret_name, _header_value(credential, secret)))
        self._added: Final = added
        self._replaced: Final = {name for name, _ in (*added, *self._copied)}

    def __repr__(self) -> str:
        return "Signer(***)"

    def sign(self, url: str, headers: Sequence[tuple[str, str]], *, client_headers: Headers = EMPTY_HEADERS) -> Signed:
        """The request with the credential's secret, configured headers and proxy.

        What the plugin set under the same header names is replaced. A header that copies one of the client's is left
        out when the client did not send it. Raises PluginError `permission_denied` when the URL leads to another
        scheme, host or port than the credential's base URL.
        """
        credential = self._credential
        if not self.is_bound(url):
            raise host_error(
                "permission_denied",
                f"credential {credential.label!r} is bound to {_origin_text(credential.base_url) or 'no host'}, "
                f"not to {_origin_text(url) or 'an invalid URL'}",
            )
        replaced = self._replaced
        signed = [field for field in headers if field[0].lower() not in replaced]
        for name, source in self._copied:
            signed += [(name, value) for value in client_headers.get(source, ())]
        signed += self._added
        secret = credential.secret
        if secret is not None and credential.secret_place == "query":
            url = _with_query(url, credential.secret_name, secret)
        return Signed(url, signed, credential.proxy_url or None)

    def is_bound(self, url: str) -> bool:
        """Whether the secret may be sent to `url`."""
        start = self._origin_url
        if start and url.startswith(start) and url[len(start) : len(start) + 1] in _AFTER_ORIGIN and "\\" not in url:
            # Scheme, host and port are spelled like the base URL's and end where they end there.
            return True
        return self._origin is not None and origin_of(url) == self._origin


def sign(credential: Credential, url: str, headers: Sequence[tuple[str, str]]) -> Signed:
    """As `Signer.sign`, for one request."""
    return Signer(credential).sign(url, headers)


def is_bound(credential: Credential, url: str) -> bool:
    """As `Signer.is_bound`, for one URL."""
    return Signer(credential).is_bound(url)


def _is_copy(value: str) -> bool:
    return value.startswith("$") and not value.startswith("$$")


def _literal(value: str) -> str:
    """A value that begins with a dollar sign is written with two."""
    return value[1:] if value.startswith("$$") else value


_AFTER_ORIGIN: Final = ("", "/", "?", "#")


def _origin_url(url: str) -> str:
    """`url`, which has an origin, up to the end of its host and port."""
    return url[: url.index("//") + 2 + len(urlsplit(url).netloc)]


def _header_value(credential: Credential, secret: Secret) -> str:
    return f"Bearer {secret.reveal()}" if credential.secret_place == "bearer" else secret.reveal()


def _with_query(url: str, name: str, secret: Secret) -> str:
    parts = urlsplit(url)
    query = [(key, value) for key, value in parse_qsl(parts.query, keep_blank_values=True) if key != name]
    return urlunsplit(parts._replace(query=urlencode([*query, (name, secret.reveal())])))


def origin_of(url: str) -> tuple[str, str, int] | None:
    """Scheme, host and port; None for anything without a host, and for URLs that carry a user."""
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        return None
    # A backslash or a user part is how one URL is made to look like another to two parsers.
    if parts.scheme not in _DEFAULT_PORT or not parts.hostname or "@" in parts.netloc or "\\" in url:
        return None
    return parts.scheme, parts.hostname.rstrip("."), port or _DEFAULT_PORT[parts.scheme]


def _origin_text(url: str) -> str:
    origin = origin_of(url)
    if origin is None:
        return ""
    scheme, host, port = origin
    return f"{scheme}://{host}" if port == _DEFAULT_PORT[scheme] else f"{scheme}://{host}:{port}"
