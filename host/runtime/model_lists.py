"""The models a plugin serves without a credential (spec plugin-abi 7.6)."""

import structlog
from msgspec.structs import replace

from host.config.model import Config
from host.runtime.handle import Binding, Inputs, PluginHandle
from host.runtime.host_summary import host_summary
from host.runtime.invoke import Invoker
from host.runtime.plan import Plan
from host.runtime.snapshot import Declaration
from pluginabi.errors import AbiError
from pluginabi.payloads.common import ModelInfo
from pluginabi.payloads.models import ModelListRequest, ModelListResponse

log = structlog.get_logger("host.runtime.model_lists")


async def list_models(
    invoker: Invoker, plan: Plan, declaration: Declaration, handle: PluginHandle, config: Config
) -> tuple[str, tuple[ModelInfo, ...]] | None:
    """Provider and models of a ready plugin, from `model.static` or else `model.register`; None when it has neither.

    A plugin that fails here keeps the models it had: None, and a warning.
    """
    method = next((name for name in ("model.static", "model.register") if name in declaration.capabilities), None)
    if method is None:
        return None
    binding = Binding(
        plugin_id=plan.plugin_id,
        method=method,
        priority=0,
        handle=handle,
        on_error="fail",
        timeout_s=plan.policy.method_timeout_s(method),
        inputs=Inputs(),
        permissions=plan.policy.permissions,
    )
    request = ModelListRequest(host=host_summary(config))
    try:
        answer = (await invoker.call(binding, lambda _: request, None)).value
    except AbiError as error:
        log.warning("plugin.models_failed", plugin_id=plan.plugin_id, method=method, error=str(error))
        return None
    assert isinstance(answer, ModelListResponse)
    provider = answer.provider.strip().lower()
    models = tuple(
        model if model.id == name else replace(model, id=name) for model in answer.models if (name := model.id.strip())
    )
    if not provider or not models:
        return "", ()
    return provider, models
