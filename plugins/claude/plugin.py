"""Executes requests at the Anthropic Messages API (API reference: docs.anthropic.com/en/api/messages)."""

from collections.abc import Mapping, Sequence
from typing import Final

from pluginapi import (
    Context,
    ExecutorRegistration,
    ExecutorRequest,
    ExecutorResponse,
    Plugin,
    RegisterRequest,
    RegisterResponse,
    Stream,
    serve,
)
from pluginapi.upstream import forward, forward_stream

PROTOCOL: Final = "claude"
API_VERSION: Final = "2023-06-01"


class Claude(Plugin):
    """One plugin for every entry of `claude-api-key`."""

    id = "claude"
    version = "0.1.0"

    async def plugin_register(self, request: RegisterRequest) -> RegisterResponse:
        return RegisterResponse(
            providers=["claude"], executor=ExecutorRegistration(input_formats=[PROTOCOL], output_formats=[PROTOCOL])
        )

    async def executor_execute(self, request: ExecutorRequest, ctx: Context) -> ExecutorResponse:
        url = base_url(request) + "/v1/messages"
        return await forward(request, ctx, url=url, protocol=PROTOCOL, extra_headers=version_header(request))

    async def executor_execute_stream(self, request: ExecutorRequest, ctx: Context) -> Stream:
        url = base_url(request) + "/v1/messages"
        return await forward_stream(request, ctx, url=url, protocol=PROTOCOL, extra_headers=version_header(request))

    async def executor_count_tokens(self, request: ExecutorRequest, ctx: Context) -> ExecutorResponse:
        url = base_url(request) + "/v1/messages/count_tokens"
        return await forward(request, ctx, url=url, protocol=PROTOCOL, extra_headers=version_header(request))


def base_url(request: ExecutorRequest) -> str:
    """The upstream of this credential."""
    attributes = request.credential.attributes if request.credential is not None else {}
    return attributes.get("base_url") or "https://api.anthropic.com"


def version_header(request: ExecutorRequest) -> Mapping[str, Sequence[str]]:
    """The API refuses requests without a version; a client's own choice stays."""
    return {} if "anthropic-version" in request.headers else {"anthropic-version": (API_VERSION,)}


if __name__ == "__main__":
    serve(Claude)
