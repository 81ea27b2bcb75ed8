"""Calling auth providers: who is asked about which provider, in which order (spec plugin-abi 7.2 to 7.5)."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Final

import structlog
from msgspec.structs import replace

from host.runtime.handle import Binding, PluginSnapshot, PluginState, PluginView
from host.runtime.invoke import Invoker
from pluginabi.errors import PluginError
from pluginabi.payloads.common import CredentialRecord, HostSummary
from pluginabi.payloads.credentials import (
    AuthLoginPollRequest,
    AuthLoginPollResponse,
    AuthLoginStartRequest,
    AuthLoginStartResponse,
    AuthParseRequest,
    AuthRecordsResponse,
    AuthRefreshRequest,
    AuthRefreshResponse,
    AuthSaveRequest,
    AuthSaveResponse,
)

log = structlog.get_logger("host.runtime.auth")

PARSE: Final = "auth.parse"
REFRESH: Final = "auth.refresh"
SAVE: Final = "auth.save"
LOGIN_START: Final = "auth.login.start"
LOGIN_POLL: Final = "auth.login.poll"
METHODS: Final = (PARSE, REFRESH, SAVE, LOGIN_START, LOGIN_POLL)


@dataclass(frozen=True, slots=True)
class ClaimedFile:
    """A plugin's records of a file, never none, and what it is called as an auth provider."""

    plugin_id: str
    provider: str
    records: tuple[CredentialRecord, ...]


class AuthProviders:
    """The auth providers of the present snapshot. Errors of calls are raised as the invoker raises them."""

    def __init__(
        self, invoker: Invoker, *, snapshot: Callable[[], PluginSnapshot], host: Callable[[], HostSummary]
    ) -> None:
        self._invoker: Final = invoker
        self._snapshot: Final = snapshot
        self._host: Final = host

    def signature(self, method: str) -> tuple[Any, ...]:
        """Differs when somebody else than before would be asked: about files (`PARSE`) or tokens (`REFRESH`)."""
        snapshot = self._snapshot()
        return tuple(
            (binding.plugin_id, id(binding.handle), provider_names(snapshot.plugins[binding.plugin_id]))
            for binding in snapshot.bindings.get(method, ())
        )

    def parses(self, provider: str) -> bool:
        return any(True for _ in self._of(PARSE, provider))

    async def parse(self, request: AuthParseRequest) -> ClaimedFile | None:
        """A plugin that answers an error does not claim the file, and nobody else is asked: the host reads it.

        Raises PluginTransportError when a plugin cannot be asked.
        """
        for binding, view in self._of(PARSE, request.provider):
            try:
                answer: AuthRecordsResponse = await self._call(binding, request)
            except PluginError as error:
                log.warning("credential.parse_failed", plugin_id=binding.plugin_id, path=request.path, error=str(error))
                return None
            records = tuple(record for record in answer.records if record is not None)
            if records:
                own = next(iter(provider_names(view)), "")
                return ClaimedFile(binding.plugin_id, own, records)
        return None

    def refreshes(self, provider: str) -> bool:
        return bool(provider) and any(True for _ in self._of(REFRESH, provider))

    async def refresh(self, provider: str, request: AuthRefreshRequest) -> AuthRefreshResponse:
        """Raises KeyError when no plugin refreshes the provider."""
        answer: AuthRefreshResponse = await self._call(self._first(REFRESH, provider), request)
        return answer

    async def save(self, provider: str, request: AuthSaveRequest) -> AuthSaveResponse | None:
        """What the provider's plugin wants stored; None when it has no such wish or no such plugin is there."""
        for binding, _ in self._of(SAVE, provider):
            answer: AuthSaveResponse = await self._call(binding, request)
            return answer if answer.record is not None else None
        return None

    def login_providers(self) -> tuple[str, ...]:
        """Of plugins that are ready."""
        snapshot = self._snapshot()
        found = (
            name
            for binding in snapshot.bindings.get(LOGIN_START, ())
            if binding.handle.state is PluginState.READY
            for name in provider_names(snapshot.plugins[binding.plugin_id])
        )
        return tuple(dict.fromkeys(found))

    async def login_start(self, request: AuthLoginStartRequest) -> AuthLoginStartResponse:
        """Raises KeyError when no plugin logs in to the provider."""
        answer: AuthLoginStartResponse = await self._call(self._first(LOGIN_START, request.provider), request)
        return answer

    async def login_poll(self, request: AuthLoginPollRequest) -> AuthLoginPollResponse:
        """As `login_start`."""
        answer: AuthLoginPollResponse = await self._call(self._first(LOGIN_POLL, request.provider), request)
        return answer

    async def _call(self, binding: Binding, request: Any) -> Any:
        if hasattr(request, "host"):
            request = replace(request, host=self._host())
        return (await self._invoker.call(binding, lambda _: request, None)).value

    def _first(self, method: str, provider: str) -> Binding:
        for binding, _ in self._of(method, provider):
            return binding
        raise KeyError(provider)

    def _of(self, method: str, provider: str) -> Iterator[tuple[Binding, PluginView]]:
        """The plugins to ask: the first that goes by the provider's name, or all when there is no name."""
        snapshot = self._snapshot()
        for binding in snapshot.bindings.get(method, ()):
            view = snapshot.plugins[binding.plugin_id]
            if not provider:
                yield binding, view
            elif provider in provider_names(view):
                yield binding, view
                return


def provider_names(view: PluginView) -> tuple[str, ...]:
    """What a plugin is called as an auth provider: what it says, else the exact keys it executes, else its id."""
    if view.auth_provider:
        return (view.auth_provider,)
    exact = tuple(key for key in view.providers if not key.endswith("*"))
    return exact or (view.plugin_id.lower(),)
