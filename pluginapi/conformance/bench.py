"""What all checks of one run share: the processes, the level, what has been learnt about the plugin so far."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Literal, NamedTuple, TypeAlias

from msgspec.structs import replace

from pluginabi.codec import decode_result, encode_params
from pluginabi.errors import ErrorBody, PluginTransportError
from pluginabi.frames import Hello
from pluginabi.methods import METHODS
from pluginabi.payloads.lifecycle import RegisterRequest, RegisterResponse
from pluginabi.version import FEATURES
from pluginapi.conformance.conversation import HOST, Conversation, HelloSeen
from pluginapi.conformance.ledger import Probe
from pluginapi.conformance.outcome import Level, Measurements, NotApplicable, Unmet
from pluginapi.conformance.samples import STREAMING, callable_methods, sample
from pluginapi.conformance.target import Target

RequestedLevel: TypeAlias = Literal["minimal", "full", "auto"]

EXIT_S: Final = 4.0
"""A host waits 2 s before the next step; twice that, so that a busy machine does not decide."""
SLOW_S: Final = 0.1
"""A method that takes this long is in progress for long enough to look at it meanwhile."""
SLOW_BEGUN_S: Final = 0.01
REGISTER: Final = "plugin.register"
PARENT_CLOSED: Final = ErrorBody(message="the call has finished", code="parent_closed", origin="host")


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """How to test."""

    level: RequestedLevel = "auto"
    timeout_s: float = 10.0
    """For a hello and for every answer."""
    samples: Mapping[str, bytes] = field(default_factory=dict)
    """The author's own params, by method."""
    config: Mapping[str, object] | None = None
    """What the operator would configure; on top of the defaults in the manifest."""

    measures: bool = True
    """Whether to take the numbers of the report, which are no verdict."""

    @property
    def exit_s(self) -> float:
        return min(EXIT_S, self.timeout_s)


class Violation(NamedTuple):
    """Something the plugin did that it may not, whatever was being checked."""

    expected: str
    got: str
    stderr: tuple[str, ...]


class Busy(NamedTuple):
    """A call in progress, and what keeps it there."""

    probe: Probe
    how: Literal["callback", "credit", "slow"]


class Bench:
    """Hands out conversations: the same one as long as it lives, a new one after a failure."""

    def __init__(self, target: Target, options: Options, work_dir: Path) -> None:
        self.target: Final = target
        self.options: Final = options
        self.hello: HelloSeen | None = None
        self.level: Level = "minimal" if options.level == "minimal" else "full"
        self.violations: Final[dict[str, list[Violation]]] = {}
        self.left_behind: Final[list[str]] = []
        self.ended_processes = 0
        self.measured = Measurements()
        self.durations_s: Final[dict[str, float]] = {}
        """Of the methods that answered, how long it took."""
        self.stream_waits = False
        """Whether a stream was seen to stop for want of credit."""
        self.registration: Probe | None = None
        self.last: Conversation | None = None
        """The conversation that was used last, for its stderr."""
        self.work_dir: Final = work_dir
        self.described: tuple[int | None, bytes] | None = None
        """Exit code and output of `--describe`, once it was run."""
        self._talk: Conversation | None = None
        self._started: Final[list[Conversation]] = []
        self._busy_method: str | None = None
        self._looked_for_busy = False

    # -- processes

    async def begin(self) -> None:
        """The first start, from which the level follows. Raises CannotStart; Unmet when its socket does not work."""
        try:
            self._talk = await self._start()
        finally:
            self.hello = self.last.hello if self.last is not None else None
            if self.frame is not None and self.options.level == "auto":
                self.level = "full" if self.frame.features else "minimal"
            if self.hello is not None:
                self.measured = replace(self.measured, hello_ms=round(self.hello.after_s * 1000, 1))

    @property
    def frame(self) -> Hello | None:
        """The hello, if it was one."""
        return self.hello.frame if self.hello is not None else None

    @property
    def capabilities(self) -> Sequence[str]:
        return self.frame.capabilities if self.frame is not None else ()

    @property
    def max_inflight(self) -> int:
        """Calls the kit may have open at once."""
        if self.level == "minimal" or self.frame is None or not self.frame.features:
            return 1
        return self.frame.limits.max_inflight or 64

    async def talk(self) -> Conversation:
        """A registered conversation that is alive. Raises Unmet when the plugin cannot be started again."""
        if self._talk is None or self._talk.ended:
            await self.discard()
            self._talk = await self.fresh()
        if not self._talk.ledger.probes:
            await self.register(self._talk)
        self.last = self._talk
        return self._talk

    async def fresh(self, *, wrong_token_first: bool = False) -> Conversation:
        """Another process that said hello; the caller retires or kills it. Raises Unmet."""
        talk = await self._start(wrong_token_first=wrong_token_first)
        if talk.hello is None or talk.hello.frame is None:
            told = await talk.state()
            await talk.kill()
            raise Unmet("a hello from another process of the plugin", f"none; {told}")
        return talk

    async def _start(self, *, wrong_token_first: bool = False) -> Conversation:
        talk = await Conversation.start(
            self.target, self._violate, work_dir=self.work_dir, timeout_s=self.options.timeout_s
        )
        self.last = talk
        self._started.append(talk)
        offers = () if self.options.level == "minimal" else FEATURES
        try:
            await talk.greet(offers, wrong_token_first=wrong_token_first)
        except BaseException:
            await talk.kill()
            raise
        return talk

    async def discard(self) -> None:
        """Kill the process in use: something went wrong with it."""
        talk, self._talk = self._talk, None
        if talk is not None:
            await talk.kill()

    async def close(self) -> None:
        """Leave nothing behind, whatever was going on."""
        self._talk = None
        for talk in self._started:
            await talk.kill()

    async def give_back(self) -> Conversation:
        """The conversation in use, which the caller ends."""
        talk = await self.talk()
        self._talk = None
        return talk

    async def retire(self, talk: Conversation) -> None:
        """Note what an ended process left behind."""
        self.ended_processes += 1
        self.left_behind.extend(await talk.subject.leftovers())
        talk.let_go()

    def _violate(self, check_id: str, expected: str, got: str) -> None:
        stderr = self.last.subject.stderr.lines() if self.last is not None else ()
        self.violations.setdefault(check_id, []).append(Violation(expected, got, stderr))

    # -- calls

    async def register(self, talk: Conversation, config: Mapping[str, object] | None = None) -> Probe | None:
        """Hand over the configuration as a host does: not to a plugin that knows neither the method nor features.

        `config` comes on top of the target's and the options'.
        """
        if REGISTER not in self.capabilities and not talk.features:
            return None
        merged = {**self.target.config, **(self.options.config or {}), **(config or {})}
        request = RegisterRequest(config=merged, permissions=self.target.permissions, host=HOST)
        probe = await talk.closed(talk.call(REGISTER, encode_params(request)))
        self.registration = probe
        return probe

    def methods(self) -> list[str]:
        """What is called, the cheapest first."""
        return callable_methods(self.capabilities, self.options.samples)

    def params(self, method: str) -> bytes:
        """The author's sample, or ours."""
        return self.options.samples.get(method) or sample(method, inputs=self.inputs(method))

    def inputs(self, method: str) -> Sequence[str]:
        """What a method wants to see: the manifest wins over the hello, a listed method over its default."""
        if method in self.target.inputs:
            return self.target.inputs[method]
        theirs = self.frame.inputs if self.frame is not None else {}
        return theirs[method] if method in theirs else METHODS[method].inputs

    def call(self, talk: Conversation, method: str, *, timeout_ms: int | None = None, consumes: bool = True) -> Probe:
        """Start a call with the method's sample."""
        stream = method == STREAMING
        return talk.call(method, self.params(method), stream=stream, timeout_ms=timeout_ms, consumes=consumes)

    def quick(self) -> str:
        """The method for small calls. Raises NotApplicable when none of those the kit may call answers."""
        answered = self._quick_methods()
        if not answered:
            raise NotApplicable("none of its methods can be called without a sample of yours (--samples)")
        return answered[0]

    def slowest(self) -> str:
        """The method that takes longest, streams aside. Raises NotApplicable as `quick`."""
        return max(self._quick_methods() or [self.quick()], key=lambda method: self.durations_s[method])

    def _quick_methods(self) -> list[str]:
        return [method for method in self.methods() if method in self.durations_s and method != STREAMING]

    async def still_there(self, talk: Conversation) -> None:
        """One more round trip, so that everything said before has arrived. Raises Unmet."""
        methods = self._quick_methods()
        if methods or "ping" not in talk.features:
            probe = talk.call(method := self.quick(), self.params(method))
            if not await talk.until(lambda: probe.closed):
                raise Unmet("the session goes on", f"no answer to {probe.method}; {await talk.state()}")
            return
        ping_id = talk.ping()
        if not await talk.until(lambda: ping_id in talk.ledger.pongs):
            raise Unmet("the session goes on", f"no answer to a ping; {await talk.state()}")

    async def time(self, talk: Conversation, method: str) -> tuple[Probe, float]:
        """A whole call and how long it took. Raises Unmet."""
        started_s = time.perf_counter()
        probe = await talk.closed(self.call(talk, method))
        return probe, time.perf_counter() - started_s

    # -- a call in progress

    async def busy(self, talk: Conversation) -> Busy | None:
        """Start a call that is certain to be in progress, if the plugin has one: it waits for a callback or for
        credit, or simply takes long."""
        if self._looked_for_busy:
            return await self._held(talk, self._busy_method) if self._busy_method is not None else None
        self._looked_for_busy = True
        for method in sorted(self.durations_s, key=lambda name: (name != STREAMING, -self.durations_s[name])):
            if (busy := await self._held(talk, method)) is not None:
                self._busy_method = method
                return busy
        return None

    async def _held(self, talk: Conversation, method: str) -> Busy | None:
        talk.holds_callbacks = True
        slow = self.durations_s.get(method, 0.0) >= SLOW_S
        probe = self.call(talk, method, consumes=False)
        # Waiting longer for what holds a slow call would let it end.
        await talk.until(
            lambda: probe.closed or bool(talk.held) or probe.window_is_used_up, SLOW_BEGUN_S if slow else None
        )
        if probe.closed:
            talk.holds_callbacks = False
            return None
        if talk.held:
            return Busy(probe, "callback")
        if probe.window_is_used_up:
            if self.stream_waits:
                return Busy(probe, "credit")
            talk.holds_callbacks = False
            talk.consume(probe)
            await talk.closed(probe)
            return None
        return Busy(probe, "slow")

    async def let_finish(self, talk: Conversation, busy: Busy) -> Probe:
        """Give the call what it waits for and wait for its end. Raises Unmet."""
        talk.release_callbacks()
        talk.consume(busy.probe)
        return await talk.closed(busy.probe)


def answer_problem(probe: Probe) -> str | None:
    """What is wrong with the result of a closed call; None for errors and for everything that fits."""
    if (result := probe.result) is None:
        return None
    try:
        answer = decode_result(probe.method, result.result, plugin_id="")
    except PluginTransportError as error:
        return error.cause
    status = getattr(answer, "status", 200)
    if probe.method.startswith("executor.") and probe.method != "executor.http_request" and not 200 <= status <= 299:
        return f"status {status} in a result; anything but 200 to 299 is an error"
    return None


def registration_problem(probe: Probe, capabilities: Sequence[str]) -> str | None:
    """What is wrong with an answer to plugin.register."""
    if (problem := answer_problem(probe)) is not None or probe.result is None:
        return problem
    answer: RegisterResponse = decode_result(REGISTER, probe.result.result, plugin_id="")
    unknown = sorted(set(answer.capabilities or ()) - set(capabilities))
    return f"capabilities that the hello lacks: {', '.join(unknown)}" if unknown else None
