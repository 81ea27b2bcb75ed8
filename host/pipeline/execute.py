"""THE FLOW: the whole life of a request, from routing to its settlement, in call order.

    execute, execute_stream            begin, run, and settle exactly once
      _serve                           1 route   2 intercept before   3 resolve
        run_attempts                   4 pick   5 intercept after   6 translate      (attempt.py, per credential)
          _answer_once | _open_once    7 executor   8 response hooks                 (stream.py for streams)
      _ended                           9 usage.handle and request.complete           (settle.py)

Errors leave as they were raised: PluginError, PluginTransportError or RequestError; web renders them.
"""

import asyncio
import time
from collections.abc import Coroutine
from typing import Any, Final

from msgspec import UNSET, UnsetType

from host.errors import to_error_body
from host.observe.trace import SHORT_TEXT, DecisionTrace, Shape
from host.pipeline.attempt import (
    ExecutorFailed,
    Once,
    T,
    as_content,
    call_executor,
    mark_succeeded,
    run_attempts,
    run_routed,
)
from host.pipeline.execution import Attempt, Content, Execution, Terminated
from host.pipeline.formats import MODEL_IN_BODY
from host.pipeline.headers import client_headers
from host.pipeline.intercept import intercept_before, intercept_response
from host.pipeline.nested import NestedModels
from host.pipeline.request import ClientRequest, ClientResponse, ClientStream, Operation
from host.pipeline.resolve import recognise, resolve
from host.pipeline.route import Route, route
from host.pipeline.sessions import RESPONSES, makes_state, note_made
from host.pipeline.settle import CompletedObserver, Recorder, Settler
from host.pipeline.shown_model import shown_content
from host.pipeline.source import has_source, run_from_source
from host.pipeline.state import COUNT, EXECUTE, EXECUTE_STREAM, GatewayState
from host.pipeline.stream import GatewayStream, open_stream, with_bootstrap_retries
from host.pipeline.translate import translate_response
from host.pipeline.usage_of import tier_of_body, usage_of_body
from host.runtime.invoke import Invoker
from host.runtime.scope import RequestScope
from host.tasks import TaskGroup
from pluginabi.errors import PluginTransportError
from pluginabi.frames import Usage

_REQUEST: Final = Shape("request", "protocol", "endpoint", "model", "stream", "caller", "body_size")


class Gateway:
    """Serves client requests, and through `models` the nested requests of plugins.

    `state` is replaced on reload; a request keeps the one it started with. `tasks` runs what outlives a request.
    """

    def __init__(
        self,
        *,
        invoker: Invoker,
        state: GatewayState,
        tasks: TaskGroup,
        trace: DecisionTrace | None = None,
        observe: CompletedObserver | None = None,
        recorder: Recorder | None = None,
    ) -> None:
        self.state = state
        self.trace = trace
        self.models = NestedModels(self)
        self._invoker = invoker
        self._settler = Settler(invoker, tasks, trace=trace, observe=observe, recorder=recorder)

    def execute(self, request: ClientRequest) -> Coroutine[Any, Any, ClientResponse]:
        """A complete answer (or a token count, by `request.operation`).

        Raises PluginError, PluginTransportError or RequestError. Cancelling it cancels the plugin call and settles the
        request as canceled.
        """
        method = COUNT if request.operation is Operation.COUNT else EXECUTE
        return self.run(self.begin(request, method))

    def execute_stream(self, request: ClientRequest) -> Coroutine[Any, Any, ClientStream | ClientResponse]:
        """A stream whose first item is known, or the response of an interceptor that ended the request.

        Raises as `execute`, before the first item. The caller closes the stream.
        """
        return self.run_stream(self.begin(request, EXECUTE_STREAM))

    def begin(
        self, request: ClientRequest, method: str, *, scope: RequestScope | None = None, wanted: str = ""
    ) -> Execution:
        """An execution with the present state; nested calls give `scope` and `wanted`, the protocol of the answer."""
        state: GatewayState = scope.state if scope is not None else self.state
        trace = None
        if self.trace is not None and state.config.decision_trace:
            trace = self.trace.begin(
                request.request_id, parent_request_id=scope.parent_request_id if scope is not None else None
            )
            trace.has_long = len(request.model) + len(request.principal.name) > SHORT_TEXT
            trace.note(
                _REQUEST,
                request.protocol,
                request.endpoint,
                request.model,
                request.stream,
                request.principal.name,
                len(request.body),
            )
        nested = scope is not None
        named: str | UnsetType = UNSET
        if scope is None:
            scope = RequestScope(
                request_id=request.request_id, principal=request.principal, state=state, times_s=request.times_s
            )
            # Where clients name the model in the body, that is where web has it from.
            named = request.model if request.model and request.protocol in MODEL_IN_BODY else UNSET
        scope.inbound_headers, scope.inbound_query = request.headers, request.query
        scope.record = trace.record if trace is not None else None
        content = Content(request.body, is_json=True, model=named)
        return Execution(
            request=request,
            state=state,
            scope=scope,
            method=method,
            wanted=wanted or request.protocol,
            model=request.model,
            content=content,
            client_content=content,
            headers=request.headers,
            query=request.query,
            trace=trace,
            nested=nested,
            started_s=time.monotonic(),
            started_at_s=time.time(),
        )

    async def run(self, ex: Execution) -> ClientResponse:
        """Serve and settle an execution that is not streamed."""
        try:
            response, usage = await self._serve(ex, self._answer_once)
        except Terminated as ended:
            return self._terminated(ex, ended)
        except ExecutorFailed as failed:
            self._failed(ex, failed.error)
            raise failed.error from None
        except BaseException as error:
            self._failed(ex, error)
            raise
        self._settler.request_ended(ex, "succeeded", status=response.status, usage=usage)
        return response

    async def run_stream(self, ex: Execution) -> ClientStream | ClientResponse:
        """Serve an execution that is streamed; the stream settles it when it ends."""
        try:
            return await with_bootstrap_retries(ex, lambda: self._serve(ex, self._open_once))
        except Terminated as ended:
            return self._terminated(ex, ended)
        except ExecutorFailed as failed:
            self._failed(ex, failed.error)
            raise failed.error from None
        except BaseException as error:
            self._failed(ex, error)
            raise

    async def _serve(self, ex: Execution, once: Once[T]) -> T:
        """Steps 1 to 8. Called again by a bootstrap retry, which keeps the route and the before-result."""
        if not ex.prepared:
            hooks = ex.state.plugins.bindings
            if "model.route" in hooks:
                ex.route = await route(self._invoker, ex)
            if "request.intercept_before" in hooks:
                await intercept_before(self._invoker, ex)
            ex.prepared = True
        chosen: Route | None = ex.route
        if chosen is not None and chosen.lane is not None:
            return await run_routed(self._invoker, self._settler, ex, chosen.lane, once)
        plan = resolve(ex, chosen)
        if has_source(ex, plan):
            return await run_from_source(self._invoker, self._settler, ex, plan, once)
        if ex.unavailable and not plan.tiers:
            # That the model is unknown here would be true and misleading: it is served, by a plugin that is down.
            raise PluginTransportError(
                ex.unavailable, ex.method, phase="unavailable", cause="the plugin executor is unavailable"
            )
        if plan.total > 1 and (ex.source == RESPONSES or ex.state.pool.policy.affinity_ttl_s):
            await recognise(ex, plan)
        return await run_attempts(self._invoker, self._settler, ex, plan, once)

    async def _answer_once(self, ex: Execution, attempt: Attempt) -> tuple[ClientResponse, Usage | None]:
        """Steps 7 and 8 of one attempt, not streamed."""
        answer, usage = await call_executor(self._invoker, ex, attempt)
        content = as_content(answer)
        attempt.response_headers = answer.headers
        mark_succeeded(ex, attempt)
        if makes_state(ex, attempt):
            note_made(ex, attempt, content.data, streamed=False)
        if usage is None and self._settler.wants_usage(ex):
            usage = usage_of_body(content.data)
        if self._settler.is_recorded:
            attempt.answer_tier = tier_of_body(content.data)
        self._settler.attempt_ended(ex, attempt, usage=usage)
        content = await translate_response(self._invoker, ex, attempt, content)
        if attempt.lane.answers_as:
            content = shown_content(content, attempt.lane.answers_as)
        headers = answer.headers
        if "response.intercept_after" in ex.state.plugins.bindings:
            content, headers = await intercept_response(self._invoker, ex, attempt, content, headers)
        shown = client_headers(
            answer.headers, headers, passthrough=ex.state.config.passthrough_headers, added=ex.response_headers
        )
        return ClientResponse(status=answer.status, headers=shown, body=content.data), usage

    async def _open_once(self, ex: Execution, attempt: Attempt) -> GatewayStream:
        """Steps 7 and 8 of one attempt, streamed: returns once the first item for the client is known."""
        return await open_stream(self._invoker, self._settler, ex, attempt)

    def _terminated(self, ex: Execution, ended: Terminated) -> ClientResponse:
        self._settler.request_ended(ex, "rejected", status=ended.response.status)
        return ended.response

    def _failed(self, ex: Execution, error: BaseException) -> None:
        if isinstance(error, asyncio.CancelledError):
            self._settler.request_ended(ex, "canceled", status=0)
            return
        body = to_error_body(error)
        self._settler.request_ended(ex, "failed", status=body.http_status, error=body)
