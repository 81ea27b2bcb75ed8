"""The runtime's `SecretAttacher` over the credentials of one gateway state."""

from collections.abc import Callable
from typing import Final

from host.credentials.attach import Signer, origin_of
from host.credentials.pool import CredentialPool
from host.credentials.records import DEFAULT_BASE_URL, Credential
from host.runtime.callback_http import Attached
from host.runtime.handle import PluginSnapshot
from pluginabi.errors import host_error
from pluginabi.immutable import EMPTY_HEADERS, Headers

MAX_SIGNERS: Final = 65_536
"""Credentials that plugins hand out come without end; what is forgotten is worked out once more."""


class PoolAttacher:
    """Finds the credential behind a handle and signs with it: with its newest token, as long as it is usable.

    `current` knows a credential as it is now, `handed_out` one that a plugin handed out for an attempt. One that was
    removed or switched off meanwhile still serves the attempts that began with it.
    """

    __slots__ = ("_current", "_handed_out", "_max_signers", "_operators", "_plugins", "_pool", "_signers")

    def __init__(
        self,
        pool: CredentialPool,
        current: Callable[[str], Credential | None],
        handed_out: Callable[[str], Credential | None] = lambda handle: None,
        *,
        plugins: PluginSnapshot,
        max_signers: int = MAX_SIGNERS,
    ) -> None:
        self._pool: Final = pool
        self._current: Final = current
        self._handed_out: Final = handed_out
        self._plugins: Final = plugins
        # Thousands of credentials lead to a few addresses.
        named = {credential.base_url for credential in pool.credentials if not credential.auth_plugin}
        self._operators: Final = frozenset(map(origin_of, (*DEFAULT_BASE_URL.values(), *named)))
        """Where the operator's own credentials lead."""
        self._max_signers: Final = max_signers
        self._signers: Final[dict[str, tuple[Credential, Signer, frozenset[str]]]] = {}

    def attach(
        self,
        handle: str,
        url: str,
        headers: list[tuple[str, str]],
        *,
        plugin_id: str,
        client_headers: Headers = EMPTY_HEADERS,
    ) -> Attached:
        """Raises PluginError `permission_denied` for an unknown handle, for a host that is not bound to it, and for a
        plugin that neither executes its provider nor keeps its tokens: others see handles, too."""
        credential = self._usable(handle)
        if credential is None or credential.disabled:
            raise host_error("permission_denied", "this credential handle is unknown or disabled")
        known = self._signers.get(handle)
        if known is None or known[0] is not credential:
            if len(self._signers) >= self._max_signers:
                self._signers.clear()
            known = self._signers[handle] = credential, Signer(credential), self._users(credential.provider)
        if plugin_id not in known[2]:
            raise host_error(
                "permission_denied",
                f"credential {credential.label!r} belongs to provider {credential.provider!r}, which is not the"
                f" business of plugin {plugin_id!r}",
            )
        signed = known[1].sign(url, headers, client_headers=client_headers)
        chosen_by = credential.auth_plugin
        if chosen_by and origin_of(credential.base_url) in self._operators:
            chosen_by = ""
        return Attached(signed.url, signed.headers, signed.proxy_url, chosen_by)

    def _users(self, provider: str) -> frozenset[str]:
        """The plugins that may use a provider's credentials."""
        executor = self._plugins.executor_of_provider(provider)
        users = {view.plugin_id for view in self._plugins.plugins.values() if view.auth_provider == provider}
        return frozenset(users | ({executor.plugin_id} if executor is not None else set()))

    def _usable(self, handle: str) -> Credential | None:
        now, at_start = self._current(handle), self._pool.by_handle.get(handle)
        if at_start is None:
            return now or self._handed_out(handle)
        if now is None or now.disabled or now.base_url != at_start.base_url:
            # The request's URLs were made from what it started with.
            return at_start
        return now
