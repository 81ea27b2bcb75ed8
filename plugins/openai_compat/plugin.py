"""Executes requests at OpenAI-compatible upstreams (API reference: platform.openai.com/docs/api-reference)."""

from collections.abc import Mapping
from typing import Any, Final

from pluginapi import (
    Context,
    ExecutorRegistration,
    ExecutorRequest,
    ExecutorResponse,
    ModelForAuthRequest,
    ModelForAuthResponse,
    ModelInfo,
    Plugin,
    PluginError,
    RegisterRequest,
    RegisterResponse,
    Stream,
    serve,
)
from pluginapi.model_pages import count, model_pages, text, wants_lists
from pluginapi.upstream import forward, forward_stream

PATHS: Final = {"openai": "/chat/completions", "openai-response": "/responses", "openai-embedding": "/embeddings"}
COMPACT: Final = "responses/compact"
CAPABILITIES: Final = ("executor.execute", "executor.execute_stream", "model.for_auth")
"""The last one only with `list-models: true`."""


class OpenAICompat(Plugin):
    """One plugin for every entry of `openai-compatibility`; the credential says which upstream."""

    id = "openai-compat"
    version = "0.1.0"

    async def plugin_register(self, request: RegisterRequest) -> RegisterResponse:
        return RegisterResponse(
            capabilities=CAPABILITIES if wants_lists(self.config) else CAPABILITIES[:-1],
            providers=["openai-compatible-*", "openai-compatibility"],
            executor=ExecutorRegistration(input_formats=list(PATHS), output_formats=list(PATHS)),
        )

    async def model_for_auth(self, request: ModelForAuthRequest, ctx: Context) -> ModelForAuthResponse | None:
        base_url = request.credential.attributes.get("base_url", "")
        if not base_url:
            return None
        owner = request.credential.attributes.get("compat_name", "")
        pages = model_pages(ctx, request.credential, base_url + "/models", items="data", protocol="openai")
        return ModelForAuthResponse(models=[model async for it in pages if (model := _model_of(it, owner)).id])

    async def executor_execute(self, request: ExecutorRequest, ctx: Context) -> ExecutorResponse:
        return await forward(request, ctx, url=upstream_url(request), protocol=request.format)

    async def executor_execute_stream(self, request: ExecutorRequest, ctx: Context) -> Stream:
        return await forward_stream(request, ctx, url=upstream_url(request), protocol=request.format)


def upstream_url(request: ExecutorRequest) -> str:
    """Where to send the request. Raises PluginError when this provider cannot take it; another one may."""
    attributes = request.credential.attributes if request.credential is not None else {}
    base_url = attributes.get("base_url", "")
    if not base_url:
        raise PluginError(
            "this credential has no base URL; set `base-url` on its `openai-compatibility` entry",
            code="invalid_auth",
            http_status=401,
            scope="credential",
        )
    path = PATHS[request.format]
    if request.format == "openai-response" and attributes.get("responses") != "true":
        raise PluginError(
            f"provider {attributes.get('compat_name', '')!r} does not speak openai-response; "
            "set `responses: true` on its entry if it does, or use a model of another provider",
            code="unsupported_protocol_pair",
            http_status=400,
            scope="provider",
            retryable=True,
        )
    return base_url + (f"/{COMPACT}" if request.alt == COMPACT else path)


def _model_of(item: Mapping[str, Any], owner: str) -> ModelInfo:
    """An entry of the upstream's list (API reference: List models)."""
    return ModelInfo(
        id=text(item.get("id")), created=count(item.get("created")), owned_by=text(item.get("owned_by")) or owner
    )


if __name__ == "__main__":
    serve(OpenAICompat)
