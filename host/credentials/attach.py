"""Putting a credential's secret onto a request, towards the hosts bound to it and nobody else."""

from collections.abc import Sequence
from dataclasses import dataclass
from urllib.parse import parse_qsl, urlencode, urlsplit, urlunsplit

from host.credentials.records import Credential
from host.credentials.secret import Secret
from pluginabi.errors import host_error

_DEFAULT_PORT = {"https": 443, "http": 80}


@dataclass(frozen=True, slots=True)
class Signed:
    """A request with its credential. `headers` and `url` may hold the secret: never log them."""

    url: str
    headers: list[tuple[str, str]]
    proxy_url: str | None

    def __repr__(self) -> str:
        return "Signed(***)"


def sign(credential: Credential, url: str, headers: Sequence[tuple[str, str]]) -> Signed:
    """The request with the credential's secret, configured headers and proxy.

    What the plugin set under the same header names is replaced. Raises PluginError `permission_denied` when the URL
    leads to another scheme, host or port than the credential's base URL.
    """
    if not is_bound(credential, url):
        raise host_error(
            "permission_denied",
            f"credential {credential.label!r} is bound to {_origin_text(credential.base_url) or 'no host'}, "
            f"not to {_origin_text(url) or 'an invalid URL'}",
        )
    added = list(credential.headers)
    secret = credential.secret
    if secret is not None and credential.secret_place in ("bearer", "header"):
        added = [(name, value) for name, value in added if name != credential.secret_name]
        added.append((credential.secret_name, _header_value(credential, secret)))
    replaced = {name for name, _ in added}
    signed = [(name, value) for name, value in headers if name.lower() not in replaced]
    if secret is not None and credential.secret_place == "query":
        url = _with_query(url, credential.secret_name, secret)
    return Signed(url, [*signed, *added], credential.proxy_url or None)


def is_bound(credential: Credential, url: str) -> bool:
    """Whether the secret may be sent to `url`."""
    wanted = _origin(credential.base_url)
    return wanted is not None and _origin(url) == wanted


def _header_value(credential: Credential, secret: Secret) -> str:
    return f"Bearer {secret.reveal()}" if credential.secret_place == "bearer" else secret.reveal()


def _with_query(url: str, name: str, secret: Secret) -> str:
    parts = urlsplit(url)
    query = [(key, value) for key, value in parse_qsl(parts.query, keep_blank_values=True) if key != name]
    return urlunsplit(parts._replace(query=urlencode([*query, (name, secret.reveal())])))


def _origin(url: str) -> tuple[str, str, int] | None:
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
    origin = _origin(url)
    if origin is None:
        return ""
    scheme, host, port = origin
    return f"{scheme}://{host}" if port == _DEFAULT_PORT[scheme] else f"{scheme}://{host}:{port}"
