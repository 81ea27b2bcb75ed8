"""One shadow: copies of calls wait in a bounded queue, are sent to the other version, and the answers are counted."""

import zlib
from collections import Counter, deque
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, Final

from msgspec import UNSET, Raw, UnsetType

from host.recording.redact import Redactor
from host.runtime.generation import ManagedHandle
from host.runtime.handle import Binding, PluginState
from host.runtime.plan import Plan
from host.runtime.scope import CallScope, RequestScope
from host.runtime.snapshot import Declaration
from host.runtime.status import ShadowExample, ShadowStatus
from host.shadow.verdict import DECISIONS, Answered, differing, is_whole, shown
from host.tasks import TaskGroup
from pluginabi.body import Body
from pluginabi.errors import AbiError, PluginError, PluginTimeout
from pluginabi.methods import PLUGIN_METHODS
from pluginabi.payloads.common import Payload

QUEUE_CALLS: Final = 64
QUEUE_BYTES: Final = 8 * 1024 * 1024
"""Of the bodies in copies that wait or are being answered."""
CALLS_AT_ONCE: Final = 4
EXAMPLES: Final = 20
LONGEST_S: Final = 30.0
"""For a method without a deadline."""
_BODIES: Final = ("body", "client_body", "request_body")


class Copy:
    """One call on its way: what the shadow is asked, and what the version that serves answered."""

    __slots__ = ("_shadow", "limit_s", "method", "params", "request_id", "serving", "size")

    def __init__(self, shadow: "Shadow", method: str, params: Payload, *, request_id: str, limit_s: float) -> None:
        self._shadow = shadow
        self.method = method
        self.params = params
        self.request_id = request_id
        self.limit_s = limit_s
        self.size = sum(_size(getattr(params, name, UNSET)) for name in _BODIES)
        self.serving = Answered()

    def answered(self, result: Any) -> None:
        """The version that serves has answered."""
        self.serving = Answered(result=result)
        self._shadow.enqueue(self)

    def failed(self, failure: AbiError) -> None:
        """It has answered with an error; when it broke there is nothing to compare with."""
        if isinstance(failure, PluginError):
            self.serving = Answered(error=failure.body)
            self._shadow.enqueue(self)


class Shadow:
    """The other version of one plugin. `handle` None: it could not even be tried, `problem` says why."""

    def __init__(
        self,
        plan: Plan | None,
        handle: ManagedHandle | None,
        *,
        directory: str,
        sample: float,
        timeout_s: float | None,
        redactor: Redactor,
        tasks: TaskGroup,
        refused: Callable[[], Any] = dict,
        problem: str = "",
    ) -> None:
        self.plan: Final = plan
        self.handle: Final = handle
        self.declaration: Declaration | None = None
        """What the running process has; None before its first registration."""
        self.problem = problem
        self._directory: Final = directory
        self._sample: Final = sample
        self._timeout_s: Final = timeout_s
        self._redactor: Final = redactor
        self._tasks: Final = tasks
        self._refused: Final = refused
        self._queue: deque[Copy] = deque()
        self._bytes = self._running = 0
        self._generation = 0
        self._forget()

    # -- copies

    def take(self, binding: Binding, build: Callable[[Binding], Payload], request: RequestScope | None) -> Copy | None:
        """A copy of this call, which is about to be made; None when it is not compared."""
        if binding.method not in DECISIONS or not self._follows(binding) or not self._is_sampled(request):
            return None
        if self._unable():
            self._count(binding.method, "dropped")
            return None
        assert self.declaration is not None and self.plan is not None and self.handle is not None
        declared = self.declaration
        inputs = declared.inputs.get(binding.method, binding.inputs)
        permissions = self.plan.policy.permissions
        params = build(_seen_by_shadow(binding, self.handle, inputs, permissions))
        if not is_whole(params):
            return None
        limit_s = self._timeout_s or binding.timeout_s or LONGEST_S
        request_id = request.request_id if request is not None else ""
        return Copy(self, binding.method, params, request_id=request_id, limit_s=limit_s)

    def enqueue(self, copy: Copy) -> None:
        """Ask the shadow as soon as it has answered what came before; too much of it is dropped."""
        if self._unable() or self._bytes + copy.size > QUEUE_BYTES:
            self._count(copy.method, "dropped")
            return
        self._queue.append(copy)
        self._bytes += copy.size
        if self._running < CALLS_AT_ONCE:
            self._running += 1
            self._tasks.start(self._work(), name="shadow")

    def _unable(self) -> bool:
        ready = self.handle is not None and self.declaration is not None and self.handle.state is PluginState.READY
        return not ready or len(self._queue) >= QUEUE_CALLS

    def _follows(self, binding: Binding) -> bool:
        """Whether the newest generation of the plugin makes this call; what was counted of an older one is over."""
        generation = getattr(binding.handle, "generation", 0)
        if generation > self._generation:
            self._generation = generation
            self._forget()
        return bool(generation == self._generation)

    def _is_sampled(self, request: RequestScope | None) -> bool:
        """All calls of one request, or none of them."""
        if self._sample >= 1.0:
            return True
        request_id = request.request_id if request is not None else ""
        return zlib.crc32(request_id.encode()) < self._sample * 2**32

    # -- answers

    async def _work(self) -> None:
        try:
            while self._queue:
                copy = self._queue.popleft()
                try:
                    await self._compare(copy)
                finally:
                    self._bytes -= copy.size
        finally:
            self._running -= 1

    async def _compare(self, copy: Copy) -> None:
        try:
            answered = await self._ask(copy)
        except PluginTimeout:
            self._count(copy.method, "timeout")
            return
        except AbiError as error:
            self._count(copy.method, "error")
            self._last_error = self._redactor.line(str(error)).decode()
            return
        found = differing(copy.serving, answered)
        self._count(copy.method, "different" if found else "equal")
        if found:
            example = ShadowExample(
                at=_now(),
                method=copy.method,
                request_id=copy.request_id,
                differences=tuple(shown(found, copy.serving, answered, self._redactor)),
                count=len(found),
            )
            self._examples.append(example)

    async def _ask(self, copy: Copy) -> Answered:
        """What the shadow answers. Raises PluginTimeout, and AbiError where the serving version had an answer."""
        assert self.handle is not None and self.declaration is not None
        if copy.method not in self.declaration.capabilities:
            return Answered(result=PLUGIN_METHODS[copy.method].response())
        scope = CallScope(
            plugin_id=self.handle.plugin_id,
            method=copy.method,
            permissions=self.plan.policy.permissions if self.plan is not None else frozenset(),
            deadline_s=None,
        )
        try:
            reply = await self.handle.call(copy.method, copy.params, scope=scope, timeout_s=copy.limit_s)
        except PluginError as error:
            if copy.serving.error is None:
                raise
            return Answered(error=error.body)
        finally:
            scope.close()
        return Answered(result=reply.result)

    # -- what is known

    def _forget(self) -> None:
        self._counts: dict[str, Counter[str]] = {}
        self._examples: deque[ShadowExample] = deque(maxlen=EXAMPLES)
        self._last_error = ""
        self._since = _now()

    def _count(self, method: str, what: str) -> None:
        self._counts.setdefault(method, Counter())[what] += 1

    def status(self) -> ShadowStatus:
        """For the list of plugins."""
        total: Counter[str] = sum(self._counts.values(), Counter())
        handle = self.handle
        problem = self.problem or (handle.last_error if handle is not None else "")
        is_ready = handle is not None and handle.state is PluginState.READY
        return ShadowStatus(
            state=str(handle.state) if handle is not None else str(PluginState.FAILED),
            reason="" if is_ready and not self.problem else problem,
            version=self.plan.source.manifest.version if self.plan is not None else "",
            directory=self._directory,
            sample=self._sample,
            since=self._since,
            equal=total["equal"],
            different=total["different"],
            error=total["error"],
            timeout=total["timeout"],
            dropped=total["dropped"],
            methods={method: dict(counts) for method, counts in sorted(self._counts.items())},
            last_error=self._last_error,
            refused=self._refused(),
            examples=tuple(self._examples),
        )

    async def stop(self) -> None:
        """End its process; what waits is forgotten."""
        self._queue.clear()
        if self.handle is not None:
            await self.handle.stop()


def _size(body: Body | UnsetType) -> int:
    if body is UNSET:
        return 0
    form = body.json if body.json is not UNSET else body.text if body.text is not UNSET else body.base64
    return memoryview(form).nbytes if isinstance(form, Raw) else len(form or b"")


def _seen_by_shadow(binding: Binding, handle: ManagedHandle, inputs: Any, permissions: frozenset[str]) -> Binding:
    """The binding that the params are built for: what the new version asks to see, and what it may."""
    return Binding(
        plugin_id=binding.plugin_id,
        method=binding.method,
        priority=binding.priority,
        handle=handle,
        on_error="fail",
        timeout_s=binding.timeout_s,
        inputs=inputs,
        permissions=permissions,
    )


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
