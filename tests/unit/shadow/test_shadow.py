"""Copies of calls: which are made, how many may wait, and how two answers compare."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from host.config.model import Config
from host.recording.redact import Redactor
from host.runtime.handle import Binding, Inputs, PluginState, Reply
from host.runtime.invoke import Invoker
from host.runtime.plan import make_plan
from host.runtime.scope import RequestScope
from host.runtime.snapshot import declare
from host.shadow import shadow as shadow_module
from host.shadow.shadow import Shadow
from host.tasks import TaskGroup
from pluginabi.body import Body
from pluginabi.errors import ErrorBody, PluginError, PluginTimeout, PluginTransportError
from pluginabi.methods import PLUGIN_METHODS
from pluginabi.payloads.intercept import RequestInterceptRequest, RequestInterceptResponse, StreamInterceptRequest
from pluginabi.payloads.routing import ModelRouteResponse
from pluginabi.payloads.translate import ResponseTranslateRequest
from pluginabi.payloads.usage import UsageHandleRequest
from tests.support.runtime import FakeHandle, binding, plugin_folder, source_of

ROUTE, BEFORE = "model.route", "request.intercept_before"
SECRET = "a-known-secret-of-the-proxy"


class Handle(FakeHandle):
    """What a shadow needs of a process; `hold` keeps it from answering."""

    last_error = ""
    generation = 0

    def __init__(self, **answers: Any) -> None:
        super().__init__("p", **answers)
        self.hold: asyncio.Event | None = None

    async def call(self, method: str, params: Any, **fields: Any) -> Reply:
        if self.hold is not None:
            await self.hold.wait()
        return await super().call(method, params, **fields)

    async def stop(self) -> None:
        self.state = PluginState.STOPPED


class Shadowed:
    """A plugin with a shadow, called through the invoker."""

    def __init__(self, directory: Path, tasks: TaskGroup, **fields: Any) -> None:
        self.serving, self.other = FakeHandle("p"), Handle()
        self.serving.generation = 1  # type: ignore[attr-defined]
        plan = make_plan(source_of(plugin_folder(directory, "p", manifest='command = ["./run"]')), Config())
        self.shadow = Shadow(
            plan,
            self.other,  # type: ignore[arg-type]
            directory="next",
            redactor=Redactor(secrets=lambda: [SECRET], bodies=True),
            tasks=tasks,
            **{"sample": 1.0, "timeout_s": None, **fields},
        )
        self.declare(*sorted(PLUGIN_METHODS))
        self.invoker = Invoker()
        self.invoker.copier = self.shadow
        self._tasks = tasks

    def declare(self, *capabilities: str, **inputs: Any) -> None:
        assert self.shadow.plan is not None
        capabilities = tuple(method for method in capabilities if not method.startswith("plugin."))
        self.shadow.declaration = declare(
            self.shadow.plan, capabilities=capabilities, inputs=inputs, on_error={}, registration=None
        )

    async def call(
        self,
        method: str = ROUTE,
        serving: Any = None,
        other: Any = None,
        *,
        params: Any = None,
        request_id: str = "r",
        **fields: Any,
    ) -> Any:
        name = method.replace(".", "_")
        for handle, answer in ((self.serving, serving), (self.other, other)):
            if answer is not None:
                handle.answers[name] = answer if isinstance(answer, Exception) else Reply(result=answer)
        made = params or PLUGIN_METHODS[method].request()
        build: Callable[[Binding], Any] = made if callable(made) else lambda _: made
        answer = await self.invoker.call(
            binding(self.serving, method, **fields), build, RequestScope(request_id=request_id)
        )
        await self.settled()
        return answer

    async def settled(self) -> None:
        async with asyncio.timeout(5):
            while self.other.hold is None and (running := [*self._tasks._tasks]):
                await asyncio.wait(running)

    @property
    def counts(self) -> dict[str, int]:
        status = self.shadow.status()
        names = ("equal", "different", "error", "timeout", "dropped")
        return {name: count for name in names if (count := getattr(status, name))}


@pytest.fixture
async def tasks() -> AsyncIterator[TaskGroup]:
    group = TaskGroup("test")
    yield group
    await group.stop()


@pytest.fixture
def plugin(tmp_path: Path, tasks: TaskGroup) -> Shadowed:
    return Shadowed(tmp_path, tasks)


def to(model: str, reason: str = "") -> ModelRouteResponse:
    return ModelRouteResponse(target_kind="provider", target="a", target_model=model, reason=reason)


async def test_equal_and_different_answers_are_told_apart_and_the_serving_one_counts(plugin: Shadowed) -> None:
    assert (await plugin.call(ROUTE, to("x"), to("x"))).value == to("x")
    assert (await plugin.call(ROUTE, to("x"), to("y"))).value == to("x")
    assert plugin.counts == {"equal": 1, "different": 1}


async def test_a_reason_for_people_is_no_decision(plugin: Shadowed) -> None:
    await plugin.call(ROUTE, to("x", "cheap"), to("x", "because it is cheap"))
    assert plugin.counts == {"equal": 1}


async def test_bodies_are_compared_by_what_they_say(plugin: Shadowed) -> None:
    one = RequestInterceptResponse(body=Body.from_bytes(b'{"a": 1, "b": [2]}'))
    same = RequestInterceptResponse(body=Body(text='{"b":[2],"a":1}'))
    await plugin.call(BEFORE, one, same)
    await plugin.call(BEFORE, one, RequestInterceptResponse(body=Body.from_value({"a": 1, "b": [3]})))
    assert plugin.counts == {"equal": 1, "different": 1}
    assert plugin.shadow.status().examples[0].differences[0].at == "/answer/body/json/b/0"


@pytest.mark.parametrize(
    ("serving", "other", "counted"),
    [
        (to("x"), PluginError("no", http_status=429), {"error": 1}),
        (to("x"), PluginTimeout("p", ROUTE, timeout_ms=5), {"timeout": 1}),
        (to("x"), PluginTransportError("p", ROUTE, phase="exit", cause="gone"), {"error": 1}),
        (PluginError("no", http_status=429), PluginError("no", http_status=429), {"equal": 1}),
        (PluginError("no", http_status=429), PluginError("no", http_status=403), {"different": 1}),
        (PluginError("no", http_status=429), to("x"), {"different": 1}),
        (PluginTransportError("p", ROUTE, phase="exit", cause="gone"), to("x"), {}),
    ],
    ids=["fails", "is-slow", "breaks", "same-error", "another-error", "no-error", "nothing-to-compare-with"],
)
async def test_errors_are_answers_too(plugin: Shadowed, serving: Any, other: Any, counted: Any) -> None:
    answer = await plugin.call(ROUTE, serving, other)
    assert answer.failed_open is isinstance(serving, Exception)
    assert plugin.counts == counted


async def test_a_hook_that_the_other_version_does_not_have_is_an_empty_answer(plugin: Shadowed) -> None:
    plugin.declare(BEFORE)
    await plugin.call(ROUTE, to("x"))
    await plugin.call(ROUTE, ModelRouteResponse())
    assert plugin.counts == {"different": 1, "equal": 1}
    assert plugin.other.calls == []


@pytest.mark.parametrize(
    ("method", "params"),
    [
        ("usage.handle", UsageHandleRequest()),
        ("executor.execute", PLUGIN_METHODS["executor.execute"].request()),
        ("frontend_auth.authenticate", PLUGIN_METHODS["frontend_auth.authenticate"].request()),
        ("response.intercept_stream_chunk", StreamInterceptRequest()),
        ("response.translate", ResponseTranslateRequest(stream=True, index=3)),
    ],
)
async def test_what_has_an_effect_or_is_part_of_a_stream_is_not_copied(
    plugin: Shadowed, method: str, params: Any
) -> None:
    await plugin.call(method, params=params)
    assert (plugin.counts, plugin.other.calls) == ({}, [])


async def test_a_whole_answer_is_copied_to_translators(plugin: Shadowed) -> None:
    await plugin.call("response.translate", params=ResponseTranslateRequest(body=Body.from_value(1)))
    assert plugin.counts == {"equal": 1}


async def test_the_other_version_sees_what_it_asks_for_and_with_its_own_permissions(plugin: Shadowed) -> None:
    seen: list[Binding] = []

    def build(binding: Binding) -> RequestInterceptRequest:
        seen.append(binding)
        return RequestInterceptRequest(model="other" if binding.handle is plugin.other else "serving")

    plugin.declare(BEFORE, **{BEFORE: ["body:/tools"]})
    await plugin.call(BEFORE, params=build, inputs=Inputs(body=True), permissions=frozenset({"http"}))
    assert [it.inputs for it in seen] == [Inputs(body_pointers=("/tools",)), Inputs(body=True)]
    assert seen[0].permissions == frozenset()
    assert [params.model for _, params in plugin.other.calls] == ["other"]  # type: ignore[attr-defined]
    assert plugin.other.scopes[0].request is None


async def test_its_own_deadline_or_the_methods(tmp_path: Path, tasks: TaskGroup) -> None:
    own = Shadowed(tmp_path, tasks, timeout_s=0.7)
    await own.call(ROUTE, timeout_s=0.5)
    plain = Shadowed(tmp_path, tasks)
    await plain.call(ROUTE, timeout_s=0.5)
    assert (own.other.timeouts_s, plain.other.timeouts_s) == ([0.7], [0.5])


async def test_all_calls_of_a_request_are_copied_or_none(tmp_path: Path, tasks: TaskGroup) -> None:
    plugin = Shadowed(tmp_path, tasks, sample=0.3)
    for number in range(200):
        for method in (ROUTE, BEFORE):
            await plugin.call(method, request_id=f"request-{number}")
    methods = plugin.shadow.status().methods
    assert methods[ROUTE] == methods[BEFORE]
    assert 30 <= methods[ROUTE]["equal"] <= 90


async def test_a_sample_of_nothing_copies_nothing(tmp_path: Path, tasks: TaskGroup) -> None:
    plugin = Shadowed(tmp_path, tasks, sample=0.0)
    await plugin.call()
    assert (plugin.counts, plugin.other.calls) == ({}, [])


async def test_what_waits_is_bounded_and_nobody_waits_for_it(plugin: Shadowed, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shadow_module, "QUEUE_CALLS", 3)
    plugin.other.hold = asyncio.Event()
    for _ in range(20):
        await plugin.call()
    assert plugin.counts["dropped"] >= 20 - 3 - shadow_module.CALLS_AT_ONCE
    plugin.other.hold.set()
    plugin.other.hold = None
    await plugin.settled()
    assert sum(plugin.counts.values()) == 20


async def test_large_bodies_that_wait_are_bounded_together(plugin: Shadowed, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shadow_module, "QUEUE_BYTES", 2500)
    plugin.other.hold = asyncio.Event()
    for _ in range(4):
        await plugin.call(BEFORE, params=RequestInterceptRequest(body=Body.from_bytes(b'"' + b"x" * 998 + b'"')))
    assert plugin.counts == {"dropped": 2}
    plugin.other.hold.set()
    plugin.other.hold = None
    await plugin.settled()
    assert plugin.counts == {"dropped": 2, "equal": 2}


async def test_a_shadow_that_is_not_ready_is_not_asked(plugin: Shadowed) -> None:
    plugin.other.state = PluginState.BACKOFF
    await plugin.call()
    plugin.other.state = PluginState.READY
    plugin.shadow.declaration = None
    await plugin.call()
    assert (plugin.counts, plugin.other.calls) == ({"dropped": 2}, [])


async def test_counting_begins_anew_with_another_serving_version_and_leaves_out_the_draining_one(
    plugin: Shadowed,
) -> None:
    await plugin.call(ROUTE, to("x"), to("y"))
    draining, plugin.serving = plugin.serving, FakeHandle("p")
    plugin.serving.generation = 2  # type: ignore[attr-defined]
    await plugin.call(ROUTE, to("y"), to("y"))
    plugin.serving = draining
    await plugin.call(ROUTE, to("x"), to("y"))
    assert (plugin.counts, plugin.shadow.status().examples) == ({"equal": 1}, ())


async def test_examples_are_few_and_hold_no_secret_and_no_text_of_a_body(plugin: Shadowed) -> None:
    said = "somebody's very private question"
    serving = RequestInterceptResponse(headers={"authorization": ["Bearer abc"]}, body=Body.from_value({"q": said}))
    other = RequestInterceptResponse(
        headers={"authorization": ["Bearer def"], "x-a": [SECRET]}, body=Body.from_value({"q": said + "!"})
    )
    for _ in range(30):
        await plugin.call(BEFORE, serving, other)
    await plugin.call(ROUTE, to("x"), PluginError(ErrorBody(message=f"no {SECRET}")))
    status = plugin.shadow.status()
    assert len(status.examples) == shadow_module.EXAMPLES
    texts = json.dumps([[(it.at, it.serving, it.shadow) for it in e.differences] for e in status.examples])
    for secret in (said, "abc", "def", SECRET):
        assert secret not in texts
        assert secret not in status.last_error
    found = {it.at: (it.serving, it.shadow) for it in status.examples[0].differences}
    assert found["/answer/headers/authorization/0"] == ("[redacted]", "[redacted]")
    assert found["/answer/body/json/q"] == ('"[redacted: 32 characters]"', '"[redacted: 33 characters]"')


async def test_a_patch_is_shown_like_a_body(plugin: Shadowed) -> None:
    patches = [RequestInterceptResponse(patch=Body.from_value({"q": text}).json) for text in ("private", "secrets")]
    await plugin.call(BEFORE, *patches)
    (example,) = plugin.shadow.status().examples
    assert "private" not in str(example)
    assert "secrets" not in str(example)


async def test_very_large_answers_are_compared_as_a_whole(plugin: Shadowed) -> None:
    large = [RequestInterceptResponse(body=Body.from_value({"q": letter * 300_000})) for letter in "ab"]
    await plugin.call(BEFORE, *large)
    await plugin.call(BEFORE, large[0], RequestInterceptResponse(body=large[0].body))
    assert plugin.counts == {"different": 1, "equal": 1}
    (example,) = plugin.shadow.status().examples
    assert [it.at for it in example.differences] == ["/answer"]
    assert "bytes" in example.differences[0].serving
