"""One policy against one scenario: the gateway itself, with its clock, its sleep and its upstreams replaced."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from random import Random
from typing import Any, Final

import msgspec
from msgspec.structs import replace

from host.config.model import Config
from host.credentials.manager import CredentialManager
from host.credentials.records import Credential, CredentialModel, visible_attributes
from host.credentials.results import Tallies
from host.errors import RequestError, to_error_body
from host.observe.trace import DecisionTrace
from host.pipeline.execute import Gateway
from host.pipeline.request import ClientRequest, Principal
from host.pipeline.state import EXECUTE, GatewayState, build_state
from host.runtime.handle import EMPTY_SNAPSHOT, Binding, Inputs, PluginSnapshot, PluginState, PluginView, Reply
from host.runtime.invoke import Invoker
from host.runtime.scope import CallScope
from host.simulate.clock import VirtualTime
from host.simulate.oracle import Progress
from host.simulate.policies import Policy, PolicyError, plugins_of
from host.simulate.scenario import Scenario
from host.simulate.upstreams import Refusal, Upstream, upstreams
from host.simulate.workload import Arrival
from host.state.bindings import MemoryBindings
from host.tasks import TaskGroup
from pluginabi.body import Body
from pluginabi.errors import ErrorBody, PluginError, PluginTransportError
from pluginabi.immutable import freeze_headers
from pluginabi.payloads.common import Payload
from pluginabi.payloads.executor import ExecutorRequest, ExecutorResponse

MAX_TIMEOUTS: Final = 20
REMEMBERED: Final = 1000
"""Decisions of so many requests, to be counted when each is over."""
_EXECUTOR: Final = "simulated-upstreams"
_ANSWER: Final = Body.from_value({"object": "chat.completion", "choices": []})
_CLIENT: Final = Principal(name="simulation", provider="config-api-key", scope="simulation")


@dataclass(frozen=True, slots=True)
class Try:
    """One request to one upstream. `status` 200: it was served; 0: the connection was refused."""

    request: int
    credential: str
    at_s: float
    status: int


@dataclass(frozen=True, slots=True)
class Answered:
    """What the client got, and when. `served_by` is empty for an error, whose status it is."""

    request: Arrival
    status: int
    code: str
    end_s: float
    served_by: str = ""
    tried_s: float = 0.0
    """When the try began that served it."""


@dataclass(frozen=True, slots=True)
class Played:
    """Everything that happened under one policy, in its order."""

    tries: Sequence[Try]
    answers: Sequence[Answered]
    end_s: float
    refused_picks: int = 0
    """Answers of the policy's plugin that named nobody who could be taken: the scenario's strategy decided instead."""


@dataclass(slots=True)
class _Patience:
    """With a plugin that never answers: each of its calls lasts its deadline in real time."""

    in_a_row: int = 0

    def observe(self, plugin_id: str, method: str, outcome: str, duration_s: float) -> None:
        """As `host.runtime.invoke.CallObserver`."""
        if method == "scheduler.pick":
            self.in_a_row = self.in_a_row + 1 if outcome == "timeout" else 0

    @property
    def is_over(self) -> bool:
        return self.in_a_row >= MAX_TIMEOUTS


async def play(
    scenario: Scenario, policy: Policy, requests: Sequence[Arrival], seed: int, *, progress: Progress | None = None
) -> Played:
    """Send the requests. Raises PolicyError when the policy's plugin does not start, or does not answer any more."""
    patience = _Patience()
    invoker = Invoker(observe=patience.observe)
    async with plugins_of(policy, invoker) as snapshot:
        time, tasks = VirtualTime(), TaskGroup("simulate")
        known = upstreams(scenario, seed)
        manager = CredentialManager(clock=time.now)
        manager.set_source("scenario", [_credential(it, manager) for it in known.values()])
        simulated = _Upstreams(time, known, {it.handle: it.id for it in manager.credentials}, requests)
        state = build_state(_config(scenario, policy), _with_executor(snapshot, simulated), manager=manager)
        _into(state, time, seed)
        trace = None if snapshot is EMPTY_SNAPSHOT else DecisionTrace(max_requests=REMEMBERED)
        gateway = Gateway(invoker=invoker, state=state, tasks=tasks, trace=trace)
        answers: list[Answered] = []
        refused: list[int] = []

        async def serve(request: Arrival) -> None:
            if patience.is_over:
                return
            if progress is not None:
                progress(policy.name, len(answers), len(requests))
            status, code = await _ask(gateway, request)
            refused.append(_refused_picks(trace, request))
            last = simulated.last.get(request.number)
            served = last is not None and status == 200
            by, tried_s = (last.credential, last.at_s) if last is not None and served else ("", 0.0)
            answers.append(Answered(request, status, code, time.now_s, by, tried_s))

        for request in requests:
            time.at(request.at_s, partial(serve, request))
        try:
            await time.run()
            await tasks.join()
        finally:
            await tasks.stop()
        if patience.is_over:
            raise PolicyError(f"{policy.name}: scheduler.pick gave no answer in time, {MAX_TIMEOUTS} times in a row")
        return Played(simulated.tries, answers, time.now_s, sum(refused))


def _into(state: GatewayState, time: VirtualTime, seed: int) -> None:
    """Move what the gateway remembers into virtual time. Nothing has happened yet."""
    health = state.pool.health
    health.book.clock = time.now
    health.wall_clock, health.sleep = time.now, time.sleep
    health.uniform = Random(f"{seed}:jitter").uniform
    health.tallies = Tallies(clock=time.now)
    health.sessions, health.origins = MemoryBindings(clock=time.now), MemoryBindings(clock=time.now)


def _refused_picks(trace: DecisionTrace | None, request: Arrival) -> int:
    found = trace.get(_id_of(request)) if trace is not None else None
    return sum(it.kind == "pick_refused" for it in found.decisions) if found is not None else 0


def _id_of(request: Arrival) -> str:
    return f"r{request.number}"


async def _ask(gateway: Gateway, request: Arrival) -> tuple[int, str]:
    """The status and code of the client's answer."""
    body = {"model": request.model, "max_tokens": request.tokens, "messages": []}
    asked = ClientRequest(
        request_id=_id_of(request),
        protocol="openai",
        endpoint="POST /v1/chat/completions",
        model=request.model,
        stream=False,
        body=msgspec.json.encode(body),
        headers=freeze_headers([("x-session-id", request.session)] if request.session else []),
        principal=_CLIENT,
    )
    try:
        return (await gateway.execute(asked)).status, ""
    except (PluginError, PluginTransportError, RequestError) as error:
        failed = to_error_body(error)
        return failed.http_status, failed.code


class _Upstreams:
    """All upstreams as one executor: a `PluginHandle`."""

    def __init__(
        self, time: VirtualTime, known: Mapping[str, Upstream], handles: Mapping[str, str], requests: Sequence[Arrival]
    ) -> None:
        self.tries: Final[list[Try]] = []
        self.last: Final[dict[int, Try]] = {}
        """The latest try of each request."""
        self._time: Final = time
        self._known: Final = known
        self._handles: Final = handles
        self._requests: Final = requests

    @property
    def plugin_id(self) -> str:
        return _EXECUTOR

    @property
    def state(self) -> PluginState:
        return PluginState.READY

    async def call(
        self, method: str, params: Payload, *, scope: CallScope, timeout_s: float | None, stream: bool = False
    ) -> Reply:
        assert isinstance(params, ExecutorRequest) and params.credential is not None
        request = self._requests[int(params.request_id[1:])]
        upstream = self._known[self._handles[params.credential.handle]]
        refusal = upstream.ask(self._time.now_s, request.number, request.tokens)
        made = Try(request.number, upstream.id, self._time.now_s, 200 if refusal is None else refusal.status)
        self.tries.append(made)
        self.last[request.number] = made
        await self._time.sleep(upstream.latency_s(request.number) if refusal is None else refusal.takes_s)
        if refusal is not None:
            raise PluginError(_error_of(upstream, refusal))
        return Reply(result=ExecutorResponse(body=_ANSWER))


def _error_of(upstream: Upstream, refusal: Refusal) -> ErrorBody:
    """As an executor reports it."""
    if not refusal.status:
        return ErrorBody(message="connection refused", code="upstream_unreachable", http_status=502, scope="connection")
    error = ErrorBody(
        message=f"simulated {refusal.status}", code="upstream_error", http_status=refusal.status, origin="upstream"
    )
    wait_s, hint = refusal.retry_after_s, upstream.provider.reset_hint
    if wait_s is None or hint == "none":
        return error
    value = str(math.ceil(wait_s)) if hint == "retry-after" else str(math.ceil(wait_s * 1000))
    return replace(error, headers=freeze_headers([(hint, value)]))


def _credential(upstream: Upstream, manager: CredentialManager) -> Credential:
    entry = upstream.entry
    attributes = {"weight": str(entry.weight)} if entry.weight != 1 else {}
    return Credential(
        id=upstream.id,
        provider=upstream.provider.name.lower(),
        label=upstream.id,
        source_kind="file",
        path="scenario",
        handle=manager.mint.handle(upstream.id),
        attributes=visible_attributes(priority=entry.priority, **attributes),
        priority=entry.priority,
        weight=entry.weight,
        models=tuple(CredentialModel(client=model, upstream=model) for model in upstream.models),
    )


def _config(scenario: Scenario, policy: Policy) -> Config:
    gateway = scenario.gateway
    routing = gateway.routing if policy.strategy is None else replace(gateway.routing, strategy=policy.strategy)
    fields: dict[str, Any] = {name: getattr(gateway, name) for name in gateway.__struct_fields__ if name != "routing"}
    return Config(directory=str(Path.cwd()), routing=routing, **fields)


def _with_executor(snapshot: PluginSnapshot, simulated: _Upstreams) -> PluginSnapshot:
    """The policy's plugins, and the upstreams behind every provider."""
    binding = Binding(
        plugin_id=_EXECUTOR,
        method=EXECUTE,
        priority=0,
        handle=simulated,
        on_error="fail",
        timeout_s=None,
        inputs=Inputs(),
        permissions=frozenset(),
    )
    view = PluginView(
        plugin_id=_EXECUTOR,
        version="",
        priority=0,
        handle=simulated,
        capabilities=frozenset({EXECUTE}),
        providers=("*",),
    )
    return replace_snapshot(snapshot, {EXECUTE: (binding,)}, {_EXECUTOR: view})


def replace_snapshot(
    snapshot: PluginSnapshot, bindings: Mapping[str, tuple[Binding, ...]], views: Mapping[str, PluginView]
) -> PluginSnapshot:
    """The snapshot with more in it."""
    return PluginSnapshot(bindings={**snapshot.bindings, **bindings}, plugins={**snapshot.plugins, **views})
