"""A plugin with every hook of a request; its executor answers, errs or hangs as the header `x-mode` says."""

import asyncio
from collections.abc import AsyncIterator

from pluginapi import (
    Body,
    Context,
    ErrorBody,
    ExecutorRegistration,
    ExecutorRequest,
    ExecutorResponse,
    FrontendAuthRegistration,
    FrontendAuthRequest,
    FrontendAuthResponse,
    ModelRouteRequest,
    Plugin,
    PluginError,
    RegisterRequest,
    RegisterResponse,
    RequestCompleteRequest,
    RequestInterceptRequest,
    RequestTranslateRequest,
    RequestTranslateResponse,
    ResponseInterceptRequest,
    ResponseTranslateRequest,
    ResponseTranslateResponse,
    SchedulerPickRequest,
    Stream,
    StreamInterceptRequest,
    StreamItem,
    ThinkingApplyRequest,
    UsageHandleRequest,
)
from plugins.echo.plugin import EMBEDDERS, PROTOCOLS, Conversation
from tests.matrix.recorder import RECORDER

UPSTREAM_ERROR = ErrorBody(message="the upstream said no", http_status=503, origin="upstream", body_protocol="openai")
PLUGIN_ERROR = ErrorBody(message="the plugin said no", http_status=418)


class Probe(Plugin):
    """With the config `toy: true` its executor speaks a format that no client speaks, and it translates itself."""

    toy = False

    async def plugin_register(self, request: RegisterRequest, ctx: Context) -> RegisterResponse:
        self.toy = bool(request.config.get("toy"))
        formats = ["toy"] if self.toy else [*PROTOCOLS, *EMBEDDERS]
        return RegisterResponse(
            providers=["openai-compatible-probe"],
            frontend_auth=FrontendAuthRegistration(id="probe"),
            thinking_provider="openai-compatible-probe",
            executor=ExecutorRegistration(input_formats=formats, output_formats=formats),
        )

    async def frontend_auth_authenticate(self, request: FrontendAuthRequest) -> FrontendAuthResponse:
        RECORDER.saw("frontend_auth.authenticate")
        return FrontendAuthResponse(decision="allow", principal="probe")

    async def model_route(self, request: ModelRouteRequest) -> None:
        RECORDER.saw("model.route")

    async def request_intercept_before(self, request: RequestInterceptRequest) -> None:
        RECORDER.saw("request.intercept_before")

    async def scheduler_pick(self, request: SchedulerPickRequest) -> None:
        RECORDER.saw("scheduler.pick")

    async def request_intercept_after(self, request: RequestInterceptRequest) -> None:
        RECORDER.saw("request.intercept_after")

    async def request_normalize(self, request: RequestTranslateRequest) -> None:
        RECORDER.saw("request.normalize")

    async def request_translate(self, request: RequestTranslateRequest) -> RequestTranslateResponse:
        RECORDER.saw("request.translate")
        return RequestTranslateResponse(body=request.body)

    async def thinking_apply(self, request: ThinkingApplyRequest) -> None:
        RECORDER.saw("thinking.apply")

    async def executor_execute(self, request: ExecutorRequest, ctx: Context) -> ExecutorResponse:
        RECORDER.saw("executor.execute")
        return await self._answer(request, ctx, count=False)

    async def executor_count_tokens(self, request: ExecutorRequest, ctx: Context) -> ExecutorResponse:
        RECORDER.saw("executor.count_tokens")
        return await self._answer(request, ctx, count=True)

    async def executor_execute_stream(self, request: ExecutorRequest, ctx: Context) -> Stream:
        RECORDER.saw("executor.execute_stream")
        RECORDER.executing.set()
        if mode_of(request) == "plugin error":
            raise PluginError(PLUGIN_ERROR)
        return Stream(items=self._items(request))

    async def response_normalize_before(self, request: ResponseTranslateRequest) -> None:
        RECORDER.saw("response.normalize_before")

    async def response_translate(self, request: ResponseTranslateRequest) -> ResponseTranslateResponse:
        RECORDER.saw("response.translate")
        return ResponseTranslateResponse(body=request.body, items=request.items)

    async def response_normalize_after(self, request: ResponseTranslateRequest) -> None:
        RECORDER.saw("response.normalize_after")

    async def response_intercept_after(self, request: ResponseInterceptRequest) -> None:
        RECORDER.saw("response.intercept_after")

    async def response_intercept_stream_chunk(self, request: StreamInterceptRequest) -> None:
        RECORDER.saw("response.intercept_stream_chunk")

    async def usage_handle(self, request: UsageHandleRequest) -> None:
        RECORDER.saw("usage.handle")

    async def request_complete(self, request: RequestCompleteRequest) -> None:
        RECORDER.saw("request.complete")

    async def _answer(self, request: ExecutorRequest, ctx: Context, *, count: bool) -> ExecutorResponse:
        RECORDER.executing.set()
        await obey(mode_of(request))
        if (embed := EMBEDDERS.get(request.format)) is not None:
            assert isinstance(request.body, Body)
            return ExecutorResponse(body=Body.from_value(embed(request.requested_model, request.body.value())))
        shape = PROTOCOLS[protocol_of(request)]
        document = shape.count(conversation(request)) if count else shape.answer(conversation(request))
        return ExecutorResponse(body=Body.from_value(document))

    async def _items(self, request: ExecutorRequest) -> AsyncIterator[StreamItem]:
        documents = PROTOCOLS[protocol_of(request)].stream(conversation(request))
        for number, (event, document) in enumerate(documents):
            yield StreamItem(event=event, body=Body.from_value(document))
            # Not after the first: the legacy completions endpoint has nothing to say for it, so no byte would be sent.
            if number == 1:
                await obey(mode_of(request))


async def obey(mode: str) -> None:
    """Err or hang as told."""
    if mode == "upstream error":
        raise PluginError(UPSTREAM_ERROR)
    if mode == "plugin error":
        raise PluginError(PLUGIN_ERROR)
    if mode == "client gone":
        await asyncio.Event().wait()


def mode_of(request: ExecutorRequest) -> str:
    return request.headers["x-mode"][0]


def protocol_of(request: ExecutorRequest) -> str:
    """In the toy world the body still has the shape of the client's protocol."""
    return "openai" if request.format == "toy" else request.format


def conversation(request: ExecutorRequest) -> Conversation:
    return Conversation(model=request.requested_model, text="one two three", request_id=request.request_id)
