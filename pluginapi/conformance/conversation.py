"""One conversation with a started plugin: hello, calls, callbacks, and waiting for what should come."""

import asyncio
import secrets
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import msgspec
from msgspec import Raw, Struct

from pluginabi.codec import BrokenFrame, Stray, encode
from pluginabi.errors import ErrorBody
from pluginabi.frames import Call, Cancel, Credit, Frame, Goaway, Hello, HostInfo, Item, Ping, Result
from pluginabi.limits import Limits
from pluginabi.version import ABI_VERSIONS, SCHEMA_VERSION
from pluginapi.conformance.ledger import Ledger, Probe, Violate, stray
from pluginapi.conformance.outcome import Unmet
from pluginapi.conformance.subject import Subject
from pluginapi.conformance.target import Target
from pluginapi.conformance.wire import Arrival, LineWire, Wire, dial, open_stdio

HOST: Final = HostInfo(name="jackfield-conformance", version="1")
REFUSED: Final = ErrorBody(
    message="the conformance kit is no real host: it has no upstream and no store",
    code="permission_denied",
    http_status=500,
    origin="host",
)
"""The answer to every callback."""
SOCKET_S: Final = 10.0
LAST_WORDS_S: Final = 0.5
"""A process that closed its side is about to end."""


class HelloSeen(Struct, frozen=True, kw_only=True):
    """A plugin's first words."""

    line: bytes
    frame: Hello | None
    problem: str = ""
    """Why there is no frame."""
    after_s: float = 0.0

    @property
    def plain(self) -> Mapping[str, Any]:
        """The line as plain JSON; empty when it is none."""
        try:
            value = msgspec.json.decode(self.line)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return {}
        return value if isinstance(value, dict) else {}


class Conversation:
    """Made by `Conversation.start`. Nothing is repaired: whatever the plugin sends is judged by the ledger."""

    def __init__(self, subject: Subject, target: Target, violate: Violate, *, timeout_s: float) -> None:
        self.subject: Final = subject
        self.timeout_s: Final = timeout_s
        self.hello: HelloSeen | None = None
        self.features: frozenset[str] = frozenset()
        self._ledger: Ledger | None = None
        self.holds_callbacks = False
        self.held: list[Call] = []
        self.callbacks = 0
        self.ended = False
        self._target = target
        self._violate = violate
        self._stdio: LineWire
        self._wire: Wire
        self._said: list[Arrival] = []
        self._waiters: list[tuple[Callable[[], bool], asyncio.Future[None]]] = []
        self._last_id = 0
        self._socket_dir: tempfile.TemporaryDirectory[str] | None = None
        self._started_s = time.monotonic()

    # -- start

    @classmethod
    async def start(cls, target: Target, violate: Violate, *, work_dir: Path, timeout_s: float) -> "Conversation":
        """Start the process; `greet` comes next. Raises CannotStart."""
        subject = await Subject.start(target.command, environment=target.environment, work_dir=work_dir)
        talk = cls(subject, target, violate, timeout_s=timeout_s)
        talk._stdio = talk._wire = await open_stdio(subject, talk._on_stdout)
        return talk

    async def greet(self, offers: Sequence[str], *, wrong_token_first: bool = False) -> None:
        """Say hello and hear the plugin's; over its socket as well when it has one. `offers`: the host's features.

        Raises Unmet when the socket does not work. A missing or unusable hello is left in `hello`.
        """
        limits = Limits()
        hello = Hello(abi=ABI_VERSIONS, schema=SCHEMA_VERSION, features=offers, limits=limits, host=HOST)
        if not self._target.over_socket:
            await self._exchange(hello)
        else:
            self._socket_dir = tempfile.TemporaryDirectory(prefix="jf-")
            path, token = f"{self._socket_dir.name}/s", secrets.token_urlsafe(16)
            await self._exchange(msgspec.structs.replace(hello, endpoint=path, token=token))
            if self.hello is not None and self.hello.frame is not None:
                if wrong_token_first:
                    await self._try_wrong_token(hello, path)
                await self._move_to_socket(msgspec.structs.replace(hello, token=token), path)
        theirs = self.hello.frame.features if self.hello is not None and self.hello.frame is not None else ()
        self.features = frozenset(offers) & frozenset(theirs)
        self._ledger = Ledger(self.features, self._violate, typed=self._target.protocol == "grpc")
        early, self._said = self._said, []
        for arrival in early:
            self._judge(arrival)

    async def _exchange(self, hello: Hello) -> None:
        self._wire.send(hello)
        await self.until(lambda: bool(self._said))
        if not self._said:
            return
        first = self._said.pop(0)
        after_s = time.monotonic() - self._started_s
        if isinstance(first.what, Hello):
            self.hello = HelloSeen(line=first.raw or encode(first.what), frame=first.what, after_s=after_s)
        else:
            problem = first.what.reason if isinstance(first.what, BrokenFrame) else "another frame came first"
            self.hello = HelloSeen(line=first.raw, frame=None, problem=problem, after_s=after_s)

    async def _move_to_socket(self, hello: Hello, path: str) -> None:
        said_on_stdout = self.hello
        self._wire = await self._dial(path)
        self.hello = None
        await self._exchange(hello)
        if self.hello is None:
            raise Unmet("the same hello again on the socket", f"nothing; {await self.state()}")
        assert said_on_stdout is not None
        self.hello = said_on_stdout

    async def _try_wrong_token(self, hello: Hello, path: str) -> None:
        seen: list[Arrival | None] = []

        def listener(arrival: Arrival | None) -> None:
            seen.append(arrival)
            self._look()

        stranger = await self._dial(path, listener)
        stranger.send(msgspec.structs.replace(hello, token="wrong"))
        closed = await self.until(lambda: None in seen)
        stranger.close()
        if any(arrival is not None and isinstance(arrival.what, Hello) for arrival in seen):
            raise Unmet("no hello for a host with a wrong token", "one")
        if not closed:
            raise Unmet("a connection with a wrong token is closed", f"it stays open for {self.timeout_s:g} s")

    async def _dial(self, path: str, listener: Callable[[Arrival | None], None] | None = None) -> Wire:
        try:
            grpc = self._target.protocol == "grpc"
            return await dial(path, listener or self._arrived, grpc=grpc, timeout_s=min(SOCKET_S, self.timeout_s))
        except (OSError, TimeoutError) as error:
            raise Unmet("a socket that takes a connection after the hello", f"{error or 'timed out'}") from error

    @property
    def ledger(self) -> Ledger:
        """Every call and what came of it; there once `greet` returned."""
        assert self._ledger is not None
        return self._ledger

    # -- calls

    def call(
        self,
        method: str,
        params: bytes = b"{}",
        *,
        stream: bool = False,
        timeout_ms: int | None = None,
        consumes: bool = True,
    ) -> Probe:
        """Send a call. With `consumes`, credit is given for every item of its stream."""
        frame = Call(id=self._next_id(), method=method, params=Raw(params), stream=stream, timeout_ms=timeout_ms)
        probe = self._remember(frame, consumes=consumes)
        self._wire.send(frame)
        return probe

    def call_and_cancel(self, method: str, params: bytes, *, stream: bool = False) -> Probe:
        """A call whose cancel is right behind it."""
        frame = Call(id=self._next_id(), method=method, params=Raw(params), stream=stream)
        probe = self._remember(frame, consumes=True)
        self._wire.send_together(frame, Cancel(id=frame.id, reason="client_gone"))
        return probe

    def call_with_unknown_fields(self, method: str, params: bytes) -> Probe:
        """A call with members that no version of the contract has; in gRPC only inside the params."""
        unknown = {"x_conformance": [1, {"a": None}]}
        raw = Raw(encode({**msgspec.json.decode(params), **unknown}))
        frame = Call(id=self._next_id(), method=method, params=raw)
        probe = self._remember(frame, consumes=True)
        plain = {"kind": "call", "id": frame.id, "method": method, "params": raw, **unknown}
        if not self._wire.send_line(encode(plain)):
            self._wire.send(frame)
        return probe

    def send_unknown_kind(self) -> bool:
        """A frame of a kind that no version of the contract has; False where the carrier cannot carry one."""
        return self._wire.send_line(b'{"kind":"x_conformance","id":1,"note":"ignore me"}')

    def _next_id(self) -> int:
        self._last_id += 1
        return self._last_id

    def _remember(self, frame: Call, *, consumes: bool) -> Probe:
        probe = self.ledger.probes[frame.id] = Probe(frame)
        probe.consumes = consumes
        return probe

    def consume(self, probe: Probe) -> None:
        """From now on give credit for every item, and for those that came already."""
        probe.consumes = True
        self._give(probe, probe.items, probe.bytes)

    def _give(self, probe: Probe, items: int, size: int) -> None:
        if "credit" in self.features and items:
            probe.window.grant(items, size)
            self._wire.send(Credit(id=probe.id, items=items, bytes=size))

    def cancel(self, probe_id: int, reason: str) -> None:
        """Send a cancel, whatever the features say."""
        self._wire.send(Cancel(id=probe_id, reason=reason))

    def ping(self) -> int:
        """Send a ping and return its id."""
        self.ledger.pings_sent += 1
        self._wire.send(Ping(id=self.ledger.pings_sent))
        return self.ledger.pings_sent

    def goaway(self) -> None:
        """No new calls from here on."""
        self._wire.send(Goaway(reason="conformance", drain_ms=1000))

    def release_callbacks(self, error: ErrorBody = REFUSED) -> None:
        """Answer the callbacks that were held, and hold no more."""
        self.holds_callbacks = False
        held, self.held = self.held, []
        for call in held:
            self._wire.send(Result(id=call.id, ok=False, error=error))

    # -- waiting

    async def until(self, condition: Callable[[], bool], timeout_s: float | None = None) -> bool:
        """Whether `condition` came true before the conversation ended or the time was up."""
        if not condition() and not self.ended:
            waiter = (condition, asyncio.get_running_loop().create_future())
            self._waiters.append(waiter)
            await asyncio.wait([waiter[1]], timeout=self.timeout_s if timeout_s is None else timeout_s)
            self._waiters.remove(waiter)
        return condition()

    async def closed(self, probe: Probe, timeout_s: float | None = None) -> Probe:
        """Wait for a call's closing frame. Raises Unmet."""
        bound_s = self.timeout_s if timeout_s is None else timeout_s
        if not await self.until(lambda: probe.closed, bound_s):
            raise Unmet(
                f"a closing frame for {probe.method} within {bound_s:g} s", f"{probe.told()}; {await self.state()}"
            )
        return probe

    async def state(self) -> str:
        """How the plugin is, for people."""
        if self.ended:
            await self.subject.exited_within(LAST_WORDS_S)
        if self.subject.returncode is not None:
            return self.subject.how_it_ended()
        return "it closed its side" if self.ended else "it is still running"

    # -- end

    def close_stdin(self) -> None:
        """What a host does to end a plugin: close its stdin, and the socket if there is one."""
        if self._wire is not self._stdio:
            self._wire.close()
        self._stdio.close_input()

    async def kill(self) -> None:
        """End the process and everything of this conversation."""
        await self.subject.kill()
        self.let_go()

    def let_go(self) -> None:
        """Close what belongs to us; the process has ended."""
        self._wire.close()
        self._stdio.close()
        if self._socket_dir is not None:
            self._socket_dir.cleanup()

    # -- what arrives

    def _on_stdout(self, arrival: Arrival | None) -> None:
        if self._wire is self._stdio:
            self._arrived(arrival)
        elif arrival is not None:
            stray(arrival, self._violate)

    def _arrived(self, arrival: Arrival | None) -> None:
        if arrival is None:
            self.ended = True
        elif isinstance(arrival.what, Stray):
            stray(arrival, self._violate)
        elif self._ledger is None:
            self._said.append(arrival)
        else:
            self._judge(arrival)
        self._look()

    def _judge(self, arrival: Arrival) -> None:
        self.ledger.arrived(arrival)
        what: Frame | BrokenFrame | Stray = arrival.what
        if isinstance(what, Item):
            probe = self.ledger.probes.get(what.id)
            if probe is not None and probe.consumes and not probe.closed:
                self._give(probe, 1, arrival.size)
        elif isinstance(what, Call):
            self.callbacks += 1
            if self.holds_callbacks:
                self.held.append(what)
            else:
                self._wire.send(Result(id=what.id, ok=False, error=REFUSED))

    def _look(self) -> None:
        for condition, future in self._waiters:
            if not future.done() and (self.ended or condition()):
                future.set_result(None)
