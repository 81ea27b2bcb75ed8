"""Executes requests at the Gemini API (API reference: ai.google.dev/api/generate-content)."""

from collections.abc import Mapping
from typing import Any, Final
from urllib.parse import quote

import msgspec

from pluginapi import (
    Body,
    Context,
    CredentialHandle,
    ExecutorRegistration,
    ExecutorRequest,
    ExecutorResponse,
    ModelForAuthRequest,
    ModelForAuthResponse,
    ModelInfo,
    Plugin,
    RegisterRequest,
    RegisterResponse,
    Stream,
    serve,
)
from pluginapi.model_pages import count, model_pages, text, wants_lists
from pluginapi.upstream import forward, forward_stream

FORMATS: Final = ("gemini", "gemini-embedding")
EMBEDDING_ACTIONS: Final = ("embedContent", "batchEmbedContents")
CAPABILITIES: Final = ("executor.execute", "executor.execute_stream", "executor.count_tokens", "model.for_auth")
"""The last one only with `list-models: true`."""


class Gemini(Plugin):
    """One plugin for every entry of `gemini-api-key`."""

    id = "gemini"
    version = "0.1.0"

    async def plugin_register(self, request: RegisterRequest) -> RegisterResponse:
        return RegisterResponse(
            capabilities=CAPABILITIES if wants_lists(self.config) else CAPABILITIES[:-1],
            providers=["gemini"],
            executor=ExecutorRegistration(input_formats=list(FORMATS), output_formats=list(FORMATS)),
        )

    async def model_for_auth(self, request: ModelForAuthRequest, ctx: Context) -> ModelForAuthResponse:
        url = base_url(request.credential) + "/v1beta/models?pageSize=1000"
        pages = model_pages(ctx, request.credential, url, items="models", protocol="gemini", following=_next_page)
        return ModelForAuthResponse(models=[model async for item in pages if (model := _model_of(item)).id])

    async def executor_execute(self, request: ExecutorRequest, ctx: Context) -> ExecutorResponse:
        action = "generateContent"
        if request.format == "gemini-embedding":
            action = request.alt if request.alt in EMBEDDING_ACTIONS else EMBEDDING_ACTIONS[0]
            request = with_upstream_model(request)
        return await forward(request, ctx, url=action_url(request, action), protocol="gemini")

    async def executor_execute_stream(self, request: ExecutorRequest, ctx: Context) -> Stream:
        # Without `alt=sse` the upstream streams one JSON array; the client then asked for exactly that.
        url = action_url(request, "streamGenerateContent")
        query = f"?alt={quote(request.alt, safe='')}" if request.alt else "?alt=sse"
        return await forward_stream(request, ctx, url=url + query, protocol="gemini")

    async def executor_count_tokens(self, request: ExecutorRequest, ctx: Context) -> ExecutorResponse:
        return await forward(request, ctx, url=action_url(request, "countTokens"), protocol="gemini")


def action_url(request: ExecutorRequest, action: str) -> str:
    """`<base>/v1beta/models/<model>:<action>`; the model's name never leaves its path segment."""
    return f"{base_url(request.credential)}/v1beta/models/{quote(request.model, safe='')}:{action}"


def base_url(credential: CredentialHandle | None) -> str:
    """The upstream of this credential."""
    attributes = credential.attributes if credential is not None else {}
    return attributes.get("base_url") or "https://generativelanguage.googleapis.com"


def with_upstream_model(request: ExecutorRequest) -> ExecutorRequest:
    """The request with the upstream's name for its model wherever an embedding body repeats it.

    The API refuses a body that names another model than the path. Bodies that do not name one keep their bytes.
    """
    if request.model == request.requested_model or not isinstance(request.body, Body):
        return request
    document: Any = request.body.value()
    if not isinstance(document, dict):
        return request
    batch = document.get("requests")
    entries = [document, *(batch if isinstance(batch, list) else ())]
    named = [entry for entry in entries if isinstance(entry, dict) and isinstance(entry.get("model"), str)]
    for entry in named:
        entry["model"] = f"models/{request.model}"
    return msgspec.structs.replace(request, body=Body.from_value(document)) if named else request


def _model_of(item: Mapping[str, Any]) -> ModelInfo:
    """An entry of the upstream's list (API reference: models.list)."""
    name = text(item.get("name"))
    methods = item.get("supportedGenerationMethods")
    return ModelInfo(
        id=name.removeprefix("models/"),
        name=name,
        owned_by="google",
        display_name=text(item.get("displayName")),
        version=text(item.get("version")),
        description=text(item.get("description")),
        input_token_limit=count(item.get("inputTokenLimit")),
        output_token_limit=count(item.get("outputTokenLimit")),
        supported_generation_methods=[text(it) for it in methods if text(it)] if isinstance(methods, list) else (),
    )


def _next_page(page: Mapping[str, Any]) -> str:
    token = text(page.get("nextPageToken"))
    return f"&pageToken={quote(token, safe='')}" if token else ""


if __name__ == "__main__":
    serve(Gemini)
