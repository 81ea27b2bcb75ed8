"""model.for_auth: the models of single credentials, from the plugins of their providers (spec plugin-abi 7.6)."""

from collections.abc import Awaitable, Callable, Iterator, Sequence
from typing import Final

import structlog
from msgspec.structs import replace

from host.credentials.records import Credential
from host.pipeline.shown import shown_credential
from host.pipeline.state import GatewayState, visible
from host.registry.registrar import Question, Registrar
from host.runtime.handle import Binding, PluginSnapshot, PluginView
from host.runtime.invoke import Invoker
from host.tasks import TaskGroup
from pluginabi.errors import AbiError
from pluginabi.payloads.common import CredentialRecord, HostSummary, ModelInfo
from pluginabi.payloads.models import ModelForAuthRequest, ModelForAuthResponse

log = structlog.get_logger("host.pipeline.auth_models")

FOR_AUTH: Final = "model.for_auth"
Amend = Callable[[str, CredentialRecord], Awaitable[None]]
"""Takes over what a plugin changed of a credential, by id; in memory and on disk."""


class AuthModels:
    """Follows the gateway's states. `rebuild` makes the next one, with what was found."""

    def __init__(
        self,
        first: GatewayState,
        *,
        invoker: Invoker,
        tasks: TaskGroup,
        host: Callable[[], HostSummary],
        amend: Amend,
        rebuild: Callable[[], None],
    ) -> None:
        self._invoker: Final = invoker
        self._host: Final = host
        self._amend: Final = amend
        self._state = first
        self._registrar: Final = Registrar(first.parts.listed, self._models_of, publish=rebuild, tasks=tasks)
        self._rebuild: Final = rebuild
        self._turn = 0

    def refresh(self) -> None:
        """Ask about every credential again; what is known stays until something else is."""
        self._turn += 1
        self.follow(self._state)

    def follow(self, state: GatewayState) -> None:
        """`state` is the present one: ask about credentials that are new in it, or whose plugin is."""
        self._state = state
        if self._registrar.follow(self._questions(state)):
            self._rebuild()

    def _questions(self, state: GatewayState) -> Iterator[Question]:
        if FOR_AUTH not in state.plugins.bindings:
            return
        bindings: dict[str, tuple[Binding, ...]] = {}
        for credential in state.manager.credentials:
            if credential.disabled or credential.is_unusable or credential.models:
                continue
            provider = credential.provider
            if provider not in bindings:
                bindings[provider] = tuple(bindings_for(state.plugins, provider))
            if found := bindings[provider]:
                yield self._question(credential, found)

    def _question(self, credential: Credential, bindings: Sequence[Binding]) -> Question:
        handles = tuple(id(binding.handle) for binding in bindings)
        # A renewed token changes the record, and nothing about its models.
        known = (credential.attributes, credential.auth_kind, credential.source_kind, credential.base_url)
        return Question(credential, (handles, known, self._turn))

    async def _models_of(self, credential: Credential) -> Sequence[ModelInfo] | None:
        """Raises LookupError when a plugin failed; what was known of the credential stays then."""
        credential = self._state.manager.by_id.get(credential.id, credential)
        for binding in bindings_for(self._state.plugins, credential.provider):
            try:
                answer = (await self._invoker.call(binding, self._request(credential), None)).value
            except AbiError as error:
                log.warning("credential.models_failed", credential=credential.id, error=str(error))
                raise LookupError(credential.id) from None
            assert isinstance(answer, ModelForAuthResponse)
            provider = answer.provider.strip().lower()
            if provider and provider != credential.provider:
                continue
            if answer.update is not None:
                await self._amend(credential.id, answer.update)
                if (amended := self._state.manager.by_id.get(credential.id)) is not None:
                    bindings = tuple(bindings_for(self._state.plugins, amended.provider))
                    self._registrar.settle(self._question(amended, bindings))
            if not (provider or answer.models):
                continue
            named = ((model, model.id.strip()) for model in answer.models)
            return [model if model.id == name else replace(model, id=name) for model, name in named if name]
        return None

    def _request(self, credential: Credential) -> Callable[[Binding], ModelForAuthRequest]:
        def build(binding: Binding) -> ModelForAuthRequest:
            handle = shown_credential(self._state.manager, credential, visible(credential), binding)
            assert handle is not None
            return ModelForAuthRequest(credential=handle, host=self._host())

        return build


def bindings_for(plugins: PluginSnapshot, provider: str) -> Iterator[Binding]:
    """Who may know the models of a provider's credentials, in order; plugins of scope `static` say that they do not."""
    for binding in plugins.bindings.get(FOR_AUTH, ()):
        view = plugins.plugins[binding.plugin_id]
        if (view.executor is None or view.executor.scope != "static") and _serves(view, provider):
            yield binding


def _serves(view: PluginView, provider: str) -> bool:
    if view.auth_provider:
        return view.auth_provider == provider
    if provider == view.plugin_id.lower():
        return True
    return view.names(provider)
