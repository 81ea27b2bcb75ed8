"""An executor that passes requests on to any OpenAI-compatible server, through the host's HTTP client.

The bytes of the upstream's stream are forwarded as they come; when the client leaves, the upstream call ends as well.
"""

from pluginapi import (
    Body,
    Context,
    ExecutorRegistration,
    ExecutorRequest,
    ExecutorResponse,
    HttpStream,
    ModelRouteRequest,
    ModelRouteResponse,
    Plugin,
    PluginError,
    RegisterRequest,
    RegisterResponse,
    Stream,
    serve,
)

PREFIX = "relay/"


class Relay(Plugin):
    async def plugin_register(self, request: RegisterRequest) -> RegisterResponse:
        if not request.config.get("url"):
            raise PluginError("set url, for example http://localhost:11434/v1/chat/completions", http_status=400)
        return RegisterResponse(executor=ExecutorRegistration(input_formats=("openai",), output_formats=("openai",)))

    async def model_route(self, request: ModelRouteRequest) -> ModelRouteResponse | None:
        if not request.requested_model.startswith(PREFIX):
            return None
        return ModelRouteResponse(target_kind="self", reason=f"asked for with {PREFIX}")

    async def executor_execute(self, request: ExecutorRequest, ctx: Context) -> ExecutorResponse:
        async with await self._ask(request, ctx) as upstream:
            return ExecutorResponse(headers=upstream.headers, body=Body.from_bytes(await upstream.read()))

    async def executor_execute_stream(self, request: ExecutorRequest, ctx: Context) -> Stream:
        upstream = await self._ask(request, ctx)
        return Stream(items=upstream, headers=upstream.headers)

    async def _ask(self, request: ExecutorRequest, ctx: Context) -> HttpStream:
        """The upstream's answer; anything but success is raised, with the upstream's own status and body."""
        body = request.body.value() if request.body else {}
        body["model"] = request.model.removeprefix(PREFIX)
        headers = {"content-type": "application/json"}
        upstream = await ctx.http.stream("POST", self.config["url"], headers=headers, body=body)
        if 200 <= upstream.status <= 299:
            return upstream
        async with upstream:
            raise PluginError(
                f"the upstream answered {upstream.status}",
                http_status=upstream.status,
                headers=upstream.headers,
                body=await upstream.read(),
                body_protocol="openai",
                origin="upstream",
            )


if __name__ == "__main__":
    serve(Relay)
