"""Executes requests at the Anthropic Messages API (API reference: docs.anthropic.com/en/api/messages)."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, Final
from urllib.parse import quote

from pluginapi import (
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
from pluginapi.model_pages import ACCEPT, count, model_pages, text, wants_lists
from pluginapi.upstream import forward, forward_stream

PROTOCOL: Final = "claude"
API_VERSION: Final = "2023-06-01"
CAPABILITIES: Final = ("executor.execute", "executor.execute_stream", "executor.count_tokens", "model.for_auth")
"""The last one only with `list-models: true`."""


class Claude(Plugin):
    """One plugin for every entry of `claude-api-key`."""

    id = "claude"
    version = "0.1.0"

    async def plugin_register(self, request: RegisterRequest) -> RegisterResponse:
        return RegisterResponse(
            capabilities=CAPABILITIES if wants_lists(self.config) else CAPABILITIES[:-1],
            providers=["claude"],
            executor=ExecutorRegistration(input_formats=[PROTOCOL], output_formats=[PROTOCOL]),
        )

    async def model_for_auth(self, request: ModelForAuthRequest, ctx: Context) -> ModelForAuthResponse:
        url = base_url(request.credential) + "/v1/models?limit=1000"
        pages = model_pages(
            ctx,
            request.credential,
            url,
            items="data",
            protocol=PROTOCOL,
            following=_next_page,
            headers={**ACCEPT, "anthropic-version": (API_VERSION,)},
        )
        return ModelForAuthResponse(models=[model async for item in pages if (model := _model_of(item)).id])

    async def executor_execute(self, request: ExecutorRequest, ctx: Context) -> ExecutorResponse:
        url = base_url(request.credential) + "/v1/messages"
        return await forward(request, ctx, url=url, protocol=PROTOCOL, extra_headers=version_header(request))

    async def executor_execute_stream(self, request: ExecutorRequest, ctx: Context) -> Stream:
        url = base_url(request.credential) + "/v1/messages"
        return await forward_stream(request, ctx, url=url, protocol=PROTOCOL, extra_headers=version_header(request))

    async def executor_count_tokens(self, request: ExecutorRequest, ctx: Context) -> ExecutorResponse:
        url = base_url(request.credential) + "/v1/messages/count_tokens"
        return await forward(request, ctx, url=url, protocol=PROTOCOL, extra_headers=version_header(request))


def base_url(credential: CredentialHandle | None) -> str:
    """The upstream of this credential."""
    attributes = credential.attributes if credential is not None else {}
    return attributes.get("base_url") or "https://api.anthropic.com"


def version_header(request: ExecutorRequest) -> Mapping[str, Sequence[str]]:
    """The API refuses requests without a version; a client's own choice stays."""
    return {} if "anthropic-version" in request.headers else {"anthropic-version": (API_VERSION,)}


def _model_of(item: Mapping[str, Any]) -> ModelInfo:
    """An entry of the upstream's list (API reference: List Models)."""
    return ModelInfo(
        id=text(item.get("id")),
        owned_by="anthropic",
        display_name=text(item.get("display_name")),
        created=_unix(text(item.get("created_at"))),
        context_length=count(item.get("max_input_tokens")),
        max_completion_tokens=count(item.get("max_tokens")),
    )


def _next_page(page: Mapping[str, Any]) -> str:
    last = text(page.get("last_id"))
    return f"&after_id={quote(last, safe='')}" if page.get("has_more") is True and last else ""


def _unix(time: str) -> int | None:
    try:
        return max(int(datetime.fromisoformat(time).timestamp()), 0) or None
    except (ValueError, OverflowError):
        return None


if __name__ == "__main__":
    serve(Claude)
