"""host.http.*: HTTP for plugins. Every status is an answer, redirects too; only a failed transfer is an error."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Protocol, Self

from msgspec import UNSET, Struct

from host.config.model import Config
from host.config.values import seconds
from host.runtime.handle import ItemStream
from host.runtime.policy import host_matches
from host.runtime.scope import CallScope
from host.upstream.client import UpstreamClient
from host.upstream.errors import AddressRefused, BodyTooLarge, InvalidRequest, UpstreamError
from host.upstream.model import UpstreamRequest
from host.upstream.origin import parse_origin, split_url
from host.upstream.response import UpstreamResponse
from pluginabi.body import Body, StreamItem
from pluginabi.errors import ErrorBody, PluginError, host_error
from pluginabi.frames import Usage
from pluginabi.immutable import EMPTY_HEADERS, FrozenDict, Headers, freeze_headers
from pluginabi.payloads.callbacks import HttpRequest, HttpResponse


class Attached(Struct, frozen=True):
    """A request with its credential: `headers` are complete, the secret is in the headers or in the URL."""

    url: str
    headers: list[tuple[str, str]]
    proxy_url: str | None = None
    """The credential's own proxy; None: the host's."""
    chosen_by: str = ""
    """The plugin that said where the credential leads; empty: the operator did."""


class SecretAttacher(Protocol):
    """Turns a credential's handle into its secret, for the hosts bound to it."""

    def attach(
        self, handle: str, url: str, headers: list[tuple[str, str]], *, plugin_id: str, client_headers: Headers
    ) -> Attached:
        """Raises PluginError `permission_denied` when the URL's host is not bound to the credential, and when the
        credential's provider is another plugin's business.

        `client_headers`: of the request that the call belongs to, for configured headers that copy one of them.
        """


@dataclass(frozen=True, slots=True, kw_only=True)
class HttpSettings:
    """What the operator's configuration says about upstream calls."""

    connect_timeout_s: float = 10.0
    first_byte_timeout_s: float = 600.0
    idle_timeout_s: float = 300.0
    proxy_url: str | None = None


def http_settings(config: Config) -> HttpSettings:
    """The settings in `config`."""
    return HttpSettings(
        connect_timeout_s=seconds(config.timeouts.connect),
        first_byte_timeout_s=seconds(config.timeouts.first_byte),
        idle_timeout_s=seconds(config.timeouts.idle),
        proxy_url=config.proxy_url or None,
    )


class HttpCallbacks:
    """Serves the methods through one client.

    `attacher_of` gives the credentials for a call: those its request started with. `settings` and `hosts` are replaced
    when configuration is applied; a plugin without an entry in `hosts` may call any host.
    """

    def __init__(
        self,
        client: UpstreamClient,
        *,
        attacher_of: Callable[[CallScope], SecretAttacher | None] | None = None,
        settings: HttpSettings | None = None,
    ) -> None:
        self.attacher_of = attacher_of
        self.settings = settings if settings is not None else HttpSettings()
        self.hosts: Mapping[str, Sequence[Sequence[str]]] = {}
        self.private_hosts: Mapping[str, Sequence[str]] = {}
        """For plugins that may call public addresses only: patterns of hosts that they may call wherever these are."""
        self.may_call: Callable[[str], bool] = lambda plugin_id: True
        """Whether a plugin has the permission `http`."""
        self.refused: Callable[[str, str], None] | None = None
        """Told which plugin was refused what."""
        self._client: Final = client

    async def do(self, scope: CallScope, params: HttpRequest) -> HttpResponse:
        """The whole answer. Cancelling closes the upstream connection."""
        request = self._request(scope, params)
        try:
            response = await self._client.send(request)
            body = await response.read()
        except UpstreamError as error:
            raise self._transfer_failed(scope, error) from error
        return HttpResponse(
            status=response.status, headers=_headers(response.headers), body=Body.exact(body) if body else _EMPTY
        )

    async def do_stream(self, scope: CallScope, params: HttpRequest) -> tuple[HttpResponse, ItemStream]:
        """Returns when the head has arrived; the items are raw pieces of the body, read as they are asked for."""
        request = self._request(scope, params)
        try:
            response = await self._client.send(request)
        except UpstreamError as error:
            raise self._transfer_failed(scope, error) from error
        items = HttpItems(response, scope)
        return HttpResponse(status=response.status, headers=_headers(response.headers)), items

    def _request(self, scope: CallScope, params: HttpRequest) -> UpstreamRequest:
        settings = self.settings
        url, proxy_url, public_only = params.url, settings.proxy_url, False
        headers = [(name, value) for name, values in params.headers.items() for value in values]
        if params.credential is None:
            public_only = self._check(scope.plugin_id, url)
        else:
            # It leads to the host that the operator gave it, whatever the lists say.
            try:
                attached = self._attach(scope, params.credential, url, headers)
            except PluginError:
                self._note(scope.plugin_id, "host.http with a credential that is not its own or not for this host")
                raise
            url, headers = attached.url, attached.headers
            if attached.proxy_url is not None:
                proxy_url = attached.proxy_url
            if attached.chosen_by:
                public_only = self._check(attached.chosen_by, params.url, credential=True)
        return UpstreamRequest(
            method=params.method,
            url=url,
            headers=headers,
            body=b"" if params.body is UNSET else params.body.to_bytes(),
            proxy_url=proxy_url,
            connect_timeout_s=settings.connect_timeout_s,
            first_byte_timeout_s=settings.first_byte_timeout_s,
            idle_timeout_s=settings.idle_timeout_s,
            decompress=params.decompress,
            public_only=public_only,
        )

    def _transfer_failed(self, scope: CallScope, error: UpstreamError) -> PluginError:
        if not isinstance(error, AddressRefused):
            return _transfer_failed(error)
        self._note(scope.plugin_id, "host.http to an address that is not public")
        return host_error(
            "permission_denied",
            f"{error}; plugins.policy.{scope.plugin_id}.http-hosts has to name a host in this machine or its networks",
        )

    def _note(self, plugin_id: str, what: str) -> None:
        if self.refused is not None:
            self.refused(plugin_id, what)

    def _check(self, plugin_id: str, url: str, *, credential: bool = False) -> bool:
        """Whether the address has to be public. Raises PluginError when the plugin may not call the host at all.

        `credential`: it did not ask for the call itself, but made the credential and said where it leads. What it may
        not call itself it may not have called with a secret either.
        """
        allow_lists = self.hosts.get(plugin_id)
        try:
            if credential and not self.may_call(plugin_id):
                raise host_error(
                    "permission_denied",
                    f"plugin {plugin_id!r} made this credential and leads it to {_host_and_port(url)[0]}, without the"
                    " permission 'http'",
                )
            if allow_lists is not None:
                _check_host(plugin_id, url, allow_lists)
        except PluginError:
            self._note(plugin_id, "host.http to a host that is not allowed")
            raise
        private = self.private_hosts.get(plugin_id)
        return private is not None and not host_matches(*_host_and_port(url), private)

    def _attach(self, scope: CallScope, handle: str, url: str, headers: list[tuple[str, str]]) -> Attached:
        attacher = self.attacher_of(scope) if self.attacher_of is not None else None
        if attacher is None:
            raise host_error("permission_denied", "this host has no credentials")
        client_headers = scope.request.inbound_headers if scope.request is not None else EMPTY_HEADERS
        return attacher.attach(handle, url, headers, plugin_id=scope.plugin_id, client_headers=client_headers)


class HttpItems:
    """The body of an answer as raw items; closing it, or the end of the call it belongs to, closes the connection."""

    __slots__ = ("_pieces", "_response", "_scope", "usage")

    def __init__(self, response: UpstreamResponse, scope: CallScope) -> None:
        self.usage: Usage | None = None
        self._response: Final = response
        self._scope: Final = scope
        scope.on_close.append(response.close)

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> StreamItem:
        try:
            piece = await self._response.__anext__()
        except UpstreamError as error:
            if self._scope.closed:
                raise host_error("parent_closed", "host.http.do_stream: the call it belongs to has ended") from None
            self._forget()
            raise _transfer_failed(error) from error
        except StopAsyncIteration:
            self._forget()
            raise
        return StreamItem(raw=Body(base64=piece))

    async def aclose(self, reason: str = "client_gone") -> None:
        self._response.close()
        self._forget()

    def _forget(self) -> None:
        if self._response.close in self._scope.on_close:
            self._scope.on_close.remove(self._response.close)


_EMPTY: Final = Body.exact(b"")


def _headers(items: list[tuple[str, str]]) -> Headers:
    headers = {name: (value,) for name, value in items}
    # Hardly any answer has a name twice.
    return FrozenDict(headers) if len(headers) == len(items) else freeze_headers(items)


def _check_host(plugin_id: str, url: str, allow_lists: Sequence[Sequence[str]]) -> None:
    host, port = _host_and_port(url)
    for allowed in allow_lists:
        if not host_matches(host, port, allowed):
            raise host_error(
                "permission_denied",
                f"plugin {plugin_id!r} may not call {host or 'this URL'}; allowed: {', '.join(allowed) or 'no host'}"
                " (http_hosts in plugin.toml, http-hosts in its policy)",
            )


def _host_and_port(url: str) -> tuple[str, int]:
    """The client's own reading of the URL: whoever checks and whoever connects must not differ."""
    try:
        origin = parse_origin(split_url(url)[0], None)
    except InvalidRequest:
        return "", 0
    return origin.host, origin.port


_CODES: Final = {
    "connect": "upstream_unreachable",
    "tls": "upstream_tls_failed",
    "proxy": "upstream_proxy_failed",
    "send": "upstream_disconnected",
    "head": "upstream_disconnected",
    "body": "upstream_disconnected",
}


def _transfer_failed(error: UpstreamError) -> PluginError:
    """The error of a transfer that did not happen: 504 when time ran out, otherwise 502; never an upstream's status."""
    if isinstance(error, InvalidRequest):
        code, http_status, scope = "invalid_http_request", 500, "request"
    elif error.timed_out:
        code, http_status, scope = "upstream_timeout", 504, "connection"
    elif isinstance(error, BodyTooLarge):
        code, http_status, scope = "upstream_body_too_large", 502, "connection"
    else:
        code, http_status, scope = _CODES[error.phase], 502, "connection"
    details = {"phase": error.phase}
    return PluginError(
        ErrorBody(message=str(error), code=code, http_status=http_status, scope=scope, origin="host", details=details)
    )
