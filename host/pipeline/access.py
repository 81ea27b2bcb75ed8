"""Who is this client? Configured keys, then frontend-auth plugins (spec plugin-abi 7.1, credentials 9, design).

A plugin that is down never opens the proxy: it abstains, and when it is exclusive or the only provider the answer is
503.
"""

import hashlib
import hmac
import ipaddress
import secrets
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final
from urllib.parse import urlsplit

import structlog
from msgspec import UNSET, UnsetType
from msgspec.structs import replace

from host.config.model import Config
from host.observe.trace import DecisionTrace
from host.pipeline.request import Principal
from host.pipeline.state import GatewayState
from host.runtime.handle import Binding, PluginSnapshot, PluginState
from host.runtime.invoke import Invoker
from host.runtime.projection import FRONTEND_AUTH_BODY_BYTES, select_body
from host.runtime.scope import RequestScope
from pluginabi.body import Body
from pluginabi.errors import ErrorBody, PluginError, PluginTransportError
from pluginabi.immutable import FrozenDict, Headers
from pluginabi.payloads.credentials import FrontendAuthRequest, FrontendAuthResponse

log = structlog.get_logger("host.pipeline.access")

METHOD: Final = "frontend_auth.authenticate"
MAX_VERIFIED: Final = 1024
"""Spellings of valid `Authorization` values that are remembered."""
ANONYMOUS: Final = Principal(name="", provider="anonymous")
_LOCAL_NAMES: Final = frozenset({"localhost", "localhost.localdomain", "ip6-localhost"})


class AccessDenied(Exception):
    """The client may not come in; `body` says why, in the error object every family's builder reads."""

    def __init__(self, body: ErrorBody) -> None:
        super().__init__(body.message)
        self.body = body


def denied(http_status: int, code: str, message: str, *, retry_after_ms: int | None = None) -> AccessDenied:
    """An `AccessDenied` of the host's own."""
    return AccessDenied(
        ErrorBody(message=message, code=code, http_status=http_status, retry_after_ms=retry_after_ms, origin="host")
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class AccessRequest:
    """What is known of a request before its body is read."""

    request_id: str
    method: str
    path: str
    headers: Headers
    query: Headers
    client_address: str = ""
    read_body: Callable[[], Awaitable[bytes]] | None = None
    """Reads the whole body once and keeps it for later; called only for a plugin that asks for it."""
    times_s: dict[str, float] | None = None


class Access:
    """Authenticates clients against the present gateway state."""

    def __init__(
        self, *, invoker: Invoker, state: Callable[[], GatewayState], trace: DecisionTrace | None = None
    ) -> None:
        self._invoker = invoker
        self._state = state
        self._trace = trace
        self._keys = KeyRing()

    async def authenticate(
        self,
        *,
        request_id: str,
        method: str,
        path: str,
        headers: Headers,
        query: Headers,
        client_address: str = "",
        read_body: Callable[[], Awaitable[bytes]] | None = None,
        times_s: dict[str, float] | None = None,
    ) -> Principal:
        """The client's identity. Raises AccessDenied; cancelling cancels the plugin that is being asked.

        `client_address` is empty for a Unix socket. `read_body` is called only for a plugin that asks for the body. The
        time of each plugin is added to `times_s`.
        """
        if (known := self._by_authorization(headers)) is not None:
            return known
        return await self._admit(
            AccessRequest(
                request_id=request_id,
                method=method,
                path=path,
                headers=headers,
                query=query,
                client_address=client_address,
                read_body=read_body,
                times_s=times_s,
            )
        )

    def _by_authorization(self, headers: Headers) -> Principal | None:
        """The principal of a configured key in the usual place, where no plugin has a say; None in any other case."""
        values = headers.get("authorization")
        if values is None or len(values) != 1:
            return None
        state = self._state()
        if METHOD in state.plugins.bindings or not self._keys.of(state.config):
            return None
        return self._keys.find_authorization(values[0])

    async def _admit(self, request: AccessRequest) -> Principal:
        state = self._state()
        providers = auth_bindings(state.plugins)
        exclusive = exclusive_binding(state.plugins, providers)
        if exclusive is not None:
            found = await self._ask(exclusive, request, state, alone=True)
            if found is not None:
                return found
            raise denied(401, "missing_api_key", "Missing API key")
        keys = self._keys.of(state.config)
        if not keys and not providers:
            return _anonymous(request, state.config)
        offered = candidates(request.headers, request.query)
        if keys and (known := self._keys.find(offered)) is not None:
            return known
        for binding in providers:
            found = await self._ask(binding, request, state, alone=not keys and len(providers) == 1)
            if found is not None:
                return found
        if keys and offered:
            raise denied(401, "invalid_api_key", "Invalid API key")
        raise denied(401, "missing_api_key", "Missing API key")

    async def _ask(
        self, binding: Binding, request: AccessRequest, state: GatewayState, *, alone: bool
    ) -> Principal | None:
        """One plugin's principal; None when it abstains. Raises AccessDenied when it denies, or is down and alone."""
        if binding.handle.state not in (PluginState.READY, PluginState.UNRESPONSIVE):
            self._down(binding, request, "not ready", alone=alone)
            return None
        try:
            body = await _body_for(binding, request)
        except (OSError, ValueError) as error:
            log.warning("access.body_unreadable", request_id=request.request_id, error=str(error))
            raise denied(500, "internal_error", "the request body could not be read") from error

        def build(binding: Binding) -> FrontendAuthRequest:
            return FrontendAuthRequest(
                request_id=request.request_id,
                method=request.method,
                path=request.path,
                headers=request.headers,
                query=request.query,
                client_address=request.client_address,
                body=body if body is UNSET else select_body(binding.inputs, body),
                body_size=0 if body is UNSET else len(body.to_bytes()),
            )

        scope = RequestScope(
            request_id=request.request_id,
            inbound_headers=request.headers,
            inbound_query=request.query,
            state=state,
            times_s=request.times_s,
        )
        scope.record = self._recorder(request, state)
        try:
            answer = await self._invoker.call(binding, build, scope)
        except PluginTransportError as error:
            self._down(binding, request, str(error), alone=True)
            return None
        except PluginError as error:
            raise AccessDenied(error.body) from error
        if answer.failed_open:
            # Its own error is an abstention; a broken plugin is one that is down.
            broke = answer.error is not None and answer.error.origin == "host"
            if broke:
                self._down(binding, request, "failed", alone=alone)
            return None
        return self._decide(binding, request, state, answer.value)

    def _decide(
        self, binding: Binding, request: AccessRequest, state: GatewayState, value: FrontendAuthResponse
    ) -> Principal | None:
        if value.decision == "abstain":
            self._record(request, "no_opinion", plugin_id=binding.plugin_id, method=METHOD)
            return None
        if value.decision == "deny":
            self._record(request, "access_denied", plugin_id=binding.plugin_id, status=value.status)
            status = value.status if 400 <= value.status <= 599 else 401
            raise denied(status, "access_denied", value.message.strip() or "Access denied")
        self._record(request, "access_allowed", plugin_id=binding.plugin_id, caller=value.principal)
        provider = f"plugin:{binding.plugin_id}:{auth_id(state.plugins, binding)}"
        return Principal(
            name=value.principal,
            provider=provider,
            scope=scope_of(provider, value.principal),
            metadata=FrozenDict(value.metadata),
        )

    def _down(self, binding: Binding, request: AccessRequest, why: str, *, alone: bool) -> None:
        log.warning("access.provider_down", plugin_id=binding.plugin_id, request_id=request.request_id, why=why)
        if alone:
            self._record(request, "access_provider_down", plugin_id=binding.plugin_id, why=why)
            raise denied(503, "plugin_unavailable", "the authentication service is not available", retry_after_ms=1000)

    def _record(self, request: AccessRequest, kind: str, /, **fields: object) -> None:
        record = self._recorder(request, self._state())
        if record is not None:
            record(kind, **fields)

    def _recorder(self, request: AccessRequest, state: GatewayState) -> Callable[..., None] | None:
        """Appends to the trace of a request that may end here: it counts as ended until the pipeline begins with it."""
        ring = self._trace
        if ring is None or not state.config.decision_trace:
            return None

        def record(kind: str, /, **fields: object) -> None:
            trace = ring.begin(request.request_id)
            trace.record(kind, **fields)
            ring.finish(trace)

        return record


class KeyRing:
    """The configured client keys as keyed digests: finding one takes the same time whatever the candidate."""

    def __init__(self) -> None:
        self._pepper = secrets.token_bytes(32)
        self._config: Config | None = None
        self._principals: dict[bytes, Principal] = {}
        self._sourced: dict[tuple[bytes, str], Principal] = {}
        """The same, with the place where their key stood."""
        self._verified: dict[str, Principal] = {}

    def of(self, config: Config) -> bool:
        """Follow the configuration; returns whether it has keys."""
        if config is not self._config:
            self._principals = {
                self._digest(entry.key.strip()): _principal(entry.key.strip(), entry.name)
                for entry in reversed(config.api_keys)
                if entry.key.strip()
            }
            self._sourced, self._verified = {}, {}
            self._config = config
        return bool(self._principals)

    def find(self, offered: list[tuple[str, str]]) -> Principal | None:
        """The principal of the first candidate that is a configured key."""
        for source, candidate in offered:
            if (found := self._principal_of(candidate, source)) is not None:
                return found
        return None

    def find_authorization(self, value: str) -> Principal | None:
        """The principal of one `Authorization` value, the first candidate of a request that has one.

        Values that held a configured key are remembered, because a digest costs more than all else of a look-up. Only
        an equal text finds one of them again, and a text that differs is told apart by its randomised hash, not by
        comparing it character by character.
        """
        found = self._verified.get(value)
        if found is None and (found := self._principal_of(_token(value), "authorization")) is not None:
            if len(self._verified) >= MAX_VERIFIED:
                self._verified.clear()
            self._verified[value] = found
        return found

    def _principal_of(self, candidate: str, source: str) -> Principal | None:
        # The digest is keyed with a secret of this process, so a lookup leaks nothing about configured keys.
        digest = self._digest(candidate)
        if (found := self._sourced.get((digest, source))) is not None:
            return found
        if (known := self._principals.get(digest)) is None:
            return None
        found = self._sourced[digest, source] = replace(known, metadata=FrozenDict(source=source))
        return found

    def _digest(self, key: str) -> bytes:
        return hmac.digest(self._pepper, key.encode("utf-8", "surrogateescape"), "sha256")


def candidates(headers: Headers, query: Headers) -> list[tuple[str, str]]:
    """Everything in a request that may be a client key, as (source, value), in the order they are tried."""
    found = [("authorization", _token(value)) for value in headers.get("authorization", ())]
    for name in ("x-goog-api-key", "x-api-key"):
        found.extend((name, value.strip()) for value in headers.get(name, ()))
    for name, source in (("key", "query-key"), ("auth_token", "query-auth-token")):
        found.extend((source, value.strip()) for value in query.get(name, ()))
    present = any(headers.get("authorization", ())) or any(value for _, value in found)
    return found if present else []


def _token(value: str) -> str:
    """The token of a bearer header; any other scheme, or a single word, is used as it is."""
    scheme, _, rest = value.strip().partition(" ")
    return rest.strip() if scheme.lower() == "bearer" else value.strip()


def _principal(key: str, name: str) -> Principal:
    scope = scope_of("config-api-key", key)
    return Principal(name=name or f"key-{scope[:8]}", provider="config-api-key", scope=scope)


def scope_of(provider: str, principal: str) -> str:
    """A one-way hash that keeps callers apart; the same after a restart."""
    return hashlib.sha256(f"jackfield:{provider}\0{principal}".encode("utf-8", "surrogateescape")).hexdigest()[:32]


def auth_bindings(plugins: PluginSnapshot) -> tuple[Binding, ...]:
    """Frontend-auth plugins in the order they are asked, in whatever state they are."""
    return plugins.implementers(METHOD)


def exclusive_binding(plugins: PluginSnapshot, providers: tuple[Binding, ...]) -> Binding | None:
    """The one that is asked alone: of several exclusive ones the highest priority, then the smallest id."""
    found = []
    for binding in providers:
        view = plugins.plugins.get(binding.plugin_id)
        if view is not None and view.frontend_auth is not None and view.frontend_auth.exclusive:
            found.append(binding)
    return min(found, key=lambda binding: (-binding.priority, binding.plugin_id), default=None)


def auth_id(plugins: PluginSnapshot, binding: Binding) -> str:
    """The identifier a plugin registered, else its own id."""
    view = plugins.plugins.get(binding.plugin_id)
    named = view.frontend_auth.id.strip() if view is not None and view.frontend_auth is not None else ""
    return named or binding.plugin_id


async def _body_for(binding: Binding, request: AccessRequest) -> Body | UnsetType:
    """The body for a plugin that asks for it; none above 1 MiB."""
    if not (binding.inputs.body or binding.inputs.body_exact) or request.read_body is None:
        return UNSET
    data = await request.read_body()
    return Body.from_bytes(data) if data and len(data) <= FRONTEND_AUTH_BODY_BYTES else UNSET


def _anonymous(request: AccessRequest, config: Config) -> Principal:
    """Nobody is asked for a key: only for clients of this machine, and only when no web page is behind the request."""
    local_client = not request.client_address or is_loopback_name(request.client_address)
    if not (is_loopback_name(config.host) and local_client):
        raise denied(401, "missing_api_key", "Missing API key: anonymous access is for clients on this machine only")
    host = next(iter(request.headers.get("host", ())), "")
    origin = next(iter(request.headers.get("origin", ())), "")
    if not anonymous_request_allowed(host, origin):
        raise denied(
            403,
            "anonymous_access_refused",
            "without api-keys only requests to localhost are served, and none from web pages of other hosts",
        )
    return ANONYMOUS


def anonymous_request_allowed(host_header: str, origin_header: str) -> bool:
    """Whether an anonymous request may be served by its Host and Origin: both must be of this machine.

    A web page that a browser on this machine shows, or a name that was re-bound to 127.0.0.1, has another one.
    """
    if not host_header or not is_loopback_name(_host_of(host_header)):
        return False
    if not origin_header:
        return True
    try:
        origin = urlsplit(origin_header)
    except ValueError:
        return False
    return origin.scheme in ("http", "https") and is_loopback_name(origin.hostname or "")


def is_loopback_name(name: str) -> bool:
    """Whether a host name or address (brackets allowed) is this machine's loopback."""
    bare = name.strip().strip("[]").rstrip(".").lower()
    if bare in _LOCAL_NAMES or bare.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(bare).is_loopback
    except ValueError:
        return False


def _host_of(header: str) -> str:
    """The host of a Host header, port removed."""
    text = header.strip()
    if text.startswith("["):
        return text.partition("]")[0]
    return text.partition(":")[0] if text.count(":") == 1 else text
