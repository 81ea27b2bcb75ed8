"""What the credentials need of plugins, without knowing how plugins are called."""

from collections.abc import Sequence
from typing import Protocol

from pluginabi.payloads.common import CredentialRecord
from pluginabi.payloads.credentials import (
    AuthLoginPollRequest,
    AuthLoginPollResponse,
    AuthLoginStartRequest,
    AuthLoginStartResponse,
    AuthParseRequest,
    AuthRefreshRequest,
    AuthRefreshResponse,
    AuthSaveRequest,
    AuthSaveResponse,
)


class Claimed(Protocol):
    """A plugin says that a file is its own."""

    @property
    def plugin_id(self) -> str: ...

    @property
    def provider(self) -> str:
        """What the plugin is called as an auth provider."""

    @property
    def records(self) -> Sequence[CredentialRecord]:
        """Never none."""


class AuthPlugins(Protocol):
    """The auth providers among the plugins. What calls raise is PluginError or PluginTransportError, unless said
    otherwise; `host` of the requests is filled in by whoever implements this."""

    def parses(self, provider: str) -> bool:
        """Whether anybody would be asked about a file of this provider (empty: of no named one)."""

    async def parse(self, request: AuthParseRequest) -> Claimed | None:
        """The records of a file; None when nobody claims it, which a plugin that answers an error does not do either.

        Raises PluginTransportError when whoever has to be asked cannot be.
        """

    def refreshes(self, provider: str) -> bool: ...

    async def refresh(self, provider: str, request: AuthRefreshRequest) -> AuthRefreshResponse:
        """Raises KeyError when no plugin refreshes the provider."""

    async def save(self, provider: str, request: AuthSaveRequest) -> AuthSaveResponse | None:
        """What the provider's plugin wants stored instead; None when it has no such wish."""

    def login_providers(self) -> tuple[str, ...]:
        """Who can be logged in to."""

    async def login_start(self, request: AuthLoginStartRequest) -> AuthLoginStartResponse:
        """Raises KeyError when no plugin logs in to the provider."""

    async def login_poll(self, request: AuthLoginPollRequest) -> AuthLoginPollResponse:
        """As `login_start`."""
