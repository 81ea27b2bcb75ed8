"""A gateway whose upstreams, schedulers and clocks wait for a test to say what happens next: for random lives."""

import asyncio
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from host.config.model import CompatKey, CompatProvider, Config, ModelEntry
from host.credentials.manager import CredentialManager
from host.credentials.parse import parse_settings, record_of_file
from host.credentials.pool import CredentialPool
from host.credentials.records import Credential, CredentialChange
from host.credentials.takeover import carried
from host.credentials.virtual import records_of_plugin
from host.observe.trace import DecisionTrace
from host.pipeline.execute import Gateway
from host.pipeline.request import Demands
from host.pipeline.state import GatewayState, Plan, build_state
from host.registry.models import canonical
from host.runtime.handle import PluginSnapshot, Reply
from host.runtime.invoke import Invoker
from host.state.bindings import MemoryBindings
from host.tasks import TaskGroup
from pluginabi.body import Body, StreamItem
from pluginabi.errors import PluginError
from pluginabi.payloads.common import CredentialRecord
from pluginabi.payloads.executor import ExecutorResponse
from pluginabi.payloads.routing import SchedulerPickResponse
from tests.support.pipeline import Clock, FakePlugin, client_request, snapshot
from tests.support.streams import chat_chunk, sse

FIRST, LAST = sse(chat_chunk("a")), b"data: [DONE]\n\n"
TURNS = 60
"""Of the event loop, in which everything goes as far as it can."""


@dataclass
class Try:
    """One attempt that its upstream holds."""

    credential: Credential
    upstream: str
    round: int
    answer: asyncio.Future[Any]
    started_s: float = field(default_factory=time.monotonic)
    streams: bool = False
    """Its first item has arrived."""


@dataclass
class Flight:
    """A request on its way."""

    id: str
    state: GatewayState
    model: str
    stream: bool
    session: str
    bound: str
    """The credential that its session must go to; empty: any."""
    tries: list[Try] = field(default_factory=list)
    task: asyncio.Task[Any] | None = None
    sleeping: bool = False
    scheduled: bool = False
    """A scheduler had a say in it."""

    @property
    def now(self) -> Try | None:
        """The attempt that its upstream holds."""
        return self.tries[-1] if self.tries and not self.tries[-1].answer.done() else None


@dataclass
class Files:
    """Credential files by name: their documents, several accounts in one where it says so."""

    documents: dict[str, dict[str, Any]] = field(default_factory=dict)

    def records(self, manager: CredentialManager, config: Config, name: str) -> Sequence[Credential]:
        document, path = self.documents.get(name), f"/auths/{name}"
        if document is None:
            return ()
        settings = parse_settings(config, "/auths")
        if "accounts" not in document:
            return (record_of_file(document, path, settings, manager.mint, now_s=manager.clock()),)
        found = [CredentialRecord(id=it, metadata={"api_key": it, "models": ["m"]}) for it in document["accounts"]]
        return records_of_plugin(
            found, plugin_id="acme", provider=document["type"], document=document, path=path, settings=settings,
            mint=manager.mint, now_s=manager.clock(),
        )  # fmt: skip


class Stage:
    """One process. `wrong` collects what must never happen."""

    def __init__(self) -> None:
        self.clock, self.now_s = Clock(), 1_000_000.0
        self.files = Files()
        self.keys: dict[str, dict[str, Any]] = {}
        self.settings: dict[str, Any] = {}
        self.scheduler = "none"
        self.flights: dict[str, Flight] = {}
        self.thinking: dict[str, asyncio.Future[Any]] = {}
        self.sleeps: list[tuple[float, asyncio.Future[None], str]] = []
        self.wrong: list[str] = []
        self.counts: dict[tuple[str, float | None], list[int]] = {}
        """Successes and failures of each credential, as it came into being."""
        self.bound: dict[tuple[str, str], tuple[str, float]] = {}
        """The credential of each session and cursor, and until when."""
        self.number = 0
        self.tasks = TaskGroup("stage")
        hooks = {"executor.execute": self.execute, "executor.execute_stream": self.execute_stream}
        self.upstream = FakePlugin(id="upstream", hooks=hooks, providers=["openai-compatible-*"])
        self.picker = FakePlugin(id="picker", hooks={"scheduler.pick": self.pick})

    def open(self) -> None:
        self.config = self.make_config()
        self.manager = CredentialManager(clock=self.wall)
        self.manager.on_change = self.changed
        self.manager.apply_config(self.config)
        state = build_state(self.config, self.plugins(), manager=self.manager, clock=self.clock)
        state.pool.health.sleep = self.sleep
        state.pool.health.uniform = lambda low, high: low
        state.pool.health.sessions = MemoryBindings(clock=self.clock)
        self.gateway = Gateway(invoker=Invoker(), state=state, tasks=self.tasks, trace=DecisionTrace())

    @property
    def pool(self) -> CredentialPool:
        return self.gateway.state.pool

    def wall(self) -> float:
        self.now_s += 0.001  # no two moments are the same
        return self.now_s

    def plugins(self) -> PluginSnapshot:
        return snapshot(self.upstream, *([self.picker] if self.scheduler != "none" else []))

    def make_config(self) -> Config:
        providers = [
            CompatProvider(
                name=it.get("name", key), base_url="https://a.test", prefix=it.get("prefix", ""),
                models=[ModelEntry(name=name, alias=alias) for alias, names in it["models"].items() for name in names],
                api_key_entries=[CompatKey(api_key=f"{key}-{n}", weight=it.get("weight")) for n in range(it["count"])],
                priority=it.get("priority", 0), disabled=it.get("disabled", False), request_retry=it.get("retry"),
            )
            for key, it in self.keys.items()
        ]  # fmt: skip
        return Config(openai_compatibility=providers, directory="/", **self.settings)

    def reload(self) -> None:
        self.config = self.make_config()
        self.manager.apply_config(self.config)
        self.rebuild()

    def changed(self, change: CredentialChange) -> None:
        if change.routing:
            asyncio.get_running_loop().call_soon(self.rebuild)

    def rebuild(self) -> None:
        previous = self.gateway.state
        self.gateway.state = build_state(self.config, self.plugins(), previous=previous, manager=self.manager)

    def put_file(self, name: str) -> None:
        records, known = self.files.records(self.manager, self.config, name), self.manager.by_id
        records = [carried(it, known[it.id], same_content=False) if it.id in known else it for it in records]
        self.manager.set_source(f"/auths/{name}", records)

    def serving(self, model: str) -> Iterator[Credential]:
        """Every enabled credential that offers a model under this name, by looking at each."""
        for it in self.manager.credentials:
            names = {row.client for row in it.models} - set(it.excluded_models)
            plain = set() if it.prefix and self.config.force_model_prefix else names
            prefixed = {f"{it.prefix}/{name}" for name in names} if it.prefix else set()
            if not it.disabled and model in plain | prefixed:
                yield it

    async def settle(self) -> None:
        for _ in range(TURNS):
            await asyncio.sleep(0)

    # Requests

    def begin(self, model: str, session: str, *, stream: bool, demands: Demands) -> Flight:
        self.number += 1
        state = self.gateway.state
        flight = Flight(f"r{self.number}", state, model, stream, session, "", scheduled=self.scheduler != "none")
        headers = {"X-Session-ID": session} if session else {}
        request = client_request(
            {"model": model}, model=model, stream=stream, headers=headers, request_id=flight.id, demands=demands
        )
        flight.bound = self.expected_of(flight, demands)
        self.flights[flight.id] = flight
        flight.task = self.tasks.start(self.serve(flight, request), name=flight.id)
        return flight

    async def serve(self, flight: Flight, request: Any) -> None:
        try:
            if not flight.stream:
                await self.gateway.execute(request)
                return
            stream: Any = await self.gateway.execute_stream(request)
            try:
                async for _ in stream:
                    pass
            finally:
                await stream.aclose()
        except PluginError:
            pass
        except Exception as error:
            self.ended(flight, error)

    def ended(self, flight: Flight, error: Exception) -> None:
        if type(error).__name__ == "NoCredential":
            self.check_refusal(flight)
        elif type(error).__name__ != "RequestError":
            self.wrong.append(f"{flight.id}: {error!r}")

    def plan_of(self, flight: Flight) -> Plan:
        return flight.state.plan(flight.model, method="executor.execute", source="openai", wanted="openai")

    def session_of(self, flight: Flight) -> tuple[str, str] | None:
        plan = self.plan_of(flight)
        has_one = flight.session and plan.total > 1 and flight.state.policy.affinity_ttl_s
        return (flight.session, plan.cursor) if has_one else None

    def expected_of(self, flight: Flight, demands: Demands) -> str:
        """Where the request's session has to go; empty when it may go anywhere."""
        session = self.session_of(flight)
        if session is None or demands.pinned_auth_id or flight.scheduled:
            return ""
        credential_id, until_s = self.bound.get(session, ("", 0.0))
        is_free = until_s > self.clock() and credential_id in {it.id for it in self.candidates(flight)}
        return credential_id if is_free else ""

    def bind(self, flight: Flight, credential_id: str) -> None:
        if (session := self.session_of(flight)) is not None:
            self.bound[session] = credential_id, self.clock() + flight.state.policy.affinity_ttl_s

    def answer(self, flight: Flight, error: PluginError | None) -> None:
        """The upstream of the attempt that it holds answers."""
        made, session = flight.now, self.session_of(flight)
        assert made is not None
        if error is not None and self.is_of_the_token_before(flight, made, error):
            made.answer.set_result(error)
            return
        is_over = error is not None or not flight.stream or made.streams
        bound = self.bound.get(session, ("", 0.0))[0] if session is not None else ""
        if error is not None and error.body.message not in ("wrong request", "cut") and bound == made.credential.id:
            self.bound.pop(session or ("", ""))
        if is_over and error is None and bound in ("", made.credential.id):
            self.bind(flight, made.credential.id)
        known = self.pool.by_id.get(made.credential.id)
        if is_over and known is not None and not known.disabled:
            was = made.credential.id, made.credential.created_at_s
            self.counts.setdefault(was, [0, 0])[error is not None] += 1
        made.answer.set_result(error)

    def is_of_the_token_before(self, flight: Flight, made: Try, error: PluginError) -> bool:
        """A refusal that is worth another try, and says nothing about the credential."""
        others = [it for it in flight.tries if it is not made and it.round == made.round]
        is_first = (made.credential.id, made.upstream) not in {(it.credential.id, it.upstream) for it in others}
        was_renewed = self.manager.renewed_since(made.credential.id, made.started_s)
        return error.http_status == 401 and is_first and was_renewed and not made.streams

    def check_refusal(self, flight: Flight) -> None:
        free = [it.id for it in self.candidates(flight) if flight.tries == [] and not flight.scheduled]
        if free:
            self.wrong.append(f"{flight.id} was refused although {free} are free")

    def candidates(self, flight: Flight) -> list[Credential]:
        """Who could serve an attempt of a request now: free, with a weight where that counts, not tried before."""
        state, plan = flight.state, self.plan_of(flight)
        number = self.round_of(flight)
        tried = {it.credential.id for it in flight.tries if it.round == number}
        return [
            lane.credential
            for lane in plan.lanes()
            if lane.credential.id not in tried
            and not state.pool.withdrawn(lane.credential)
            and (lane.credential.weight > 0 or not state.policy.by_weight)
            and (not number or state.policy.rounds_of(lane.credential) >= number)
            and any(state.pool.book.block(lane.credential.id, lane.key_of(it)) is None for it in lane.upstreams)
        ]

    def round_of(self, flight: Flight) -> int:
        trace = self.gateway.trace.get(flight.id) if self.gateway.trace is not None else None
        decisions = trace.decisions if trace is not None else ()
        return max((it.fields["number"] for it in decisions if it.kind == "round"), default=0)

    # What plugins do

    def arrived(self, request: Any) -> Try:
        flight = self.flights[request.request_id]
        credential = flight.state.pool.by_handle[request.credential.handle]
        made = Try(credential, request.model, self.round_of(flight), asyncio.get_running_loop().create_future())
        self.check(flight, made)
        flight.tries.append(made)
        self.bind(flight, credential.id)
        return made

    def check(self, flight: Flight, made: Try) -> None:
        state, credential = flight.state, made.credential
        before = [it for it in flight.tries if it.round == made.round]
        say = f"{flight.id} with {credential.id} for {made.upstream}: "
        if state.pool.book.block(credential.id, canonical(made.upstream)) is not None:
            self.wrong.append(say + "rests")
        again = [it for it in before if (it.credential.id, it.upstream) == (credential.id, made.upstream)]
        if again and not (len(again) == 1 and self.manager.renewed_since(credential.id, again[0].started_s)):
            self.wrong.append(say + "tried twice in a round")
        if credential.id in {it.credential.id for it in before[:-1]} - {it.credential.id for it in before[-1:]}:
            self.wrong.append(say + "came back to it")
        tried = list(dict.fromkeys([it.credential.id for it in before] + [credential.id]))
        most = state.policy.max_credentials
        if most and len(tried) > most:
            self.wrong.append(say + f"is number {len(tried)} of a round")
        if why := state.pool.withdrawn(credential):
            self.wrong.append(say + f"is {why}")
        if credential.weight <= 0 and state.policy.by_weight:
            self.wrong.append(say + "has no weight")
        if state.policy.rounds_of(credential) < made.round:
            self.wrong.append(say + f"takes no part in round {made.round}")
        others = [it for it in self.candidates(flight) if it.priority > credential.priority]
        if others and not flight.bound and not flight.session and not flight.scheduled and not before:
            self.wrong.append(say + f"before {[it.id for it in others]}")
        if flight.bound and not before and not made.round and credential.id != flight.bound:
            self.wrong.append(say + f"its session is on {flight.bound}")

    async def execute(self, request: Any) -> Any:
        return await self.arrived(request).answer or ExecutorResponse(body=Body.from_value({"id": "x"}))

    async def execute_stream(self, request: Any) -> Any:
        made = self.arrived(request)
        items = Items(made)
        return Reply(result=ExecutorResponse(), items=items)

    async def pick(self, request: Any) -> Any:
        self.flights[request.request_id].scheduled = True
        ids = [it.id for it in request.candidates]
        answers: Mapping[str, Callable[[], Any]] = {
            "first": lambda: SchedulerPickResponse(auth_id=ids[0]),
            "unknown": lambda: SchedulerPickResponse(auth_id="nobody"),
            "delegate": lambda: SchedulerPickResponse(delegate="fill-first"),
            "by weight": lambda: SchedulerPickResponse(delegate="weighted-round-robin"),
            "veto": lambda: PluginError("no", http_status=451),
        }
        if self.scheduler == "slow":
            self.thinking[request.request_id] = asyncio.get_running_loop().create_future()
            return await self.thinking[request.request_id] or SchedulerPickResponse(auth_id=ids[-1])
        return answers.get(self.scheduler, lambda: SchedulerPickResponse())()

    async def sleep(self, wait_s: float) -> None:
        task = asyncio.current_task()
        flight = next(it for it in self.flights.values() if it.task is task)
        done = asyncio.get_running_loop().create_future()
        entry = (self.clock() + wait_s, done, flight.id)
        self.sleeps.append(entry)
        flight.sleeping = True
        try:
            await done
        finally:
            flight.sleeping = False
            self.sleeps.remove(entry)

    def turn(self, seconds: float) -> None:
        self.clock.now_s += seconds
        for until_s, done, _ in self.sleeps:
            if until_s <= self.clock() and not done.done():
                done.set_result(None)


class Items:
    """The stream of one attempt: an item when the test says so, then its end or an error."""

    def __init__(self, made: Try) -> None:
        self.usage = None
        self._made = made

    async def __aiter__(self) -> Any:
        first = await self._made.answer
        if isinstance(first, BaseException):
            raise first
        self._made.answer, self._made.streams = asyncio.get_running_loop().create_future(), True
        yield StreamItem(raw=Body.exact(FIRST))
        if isinstance(last := await self._made.answer, BaseException):
            raise last
        yield StreamItem(raw=Body.exact(LAST))

    async def aclose(self, reason: str = "client_gone") -> None:
        return None
