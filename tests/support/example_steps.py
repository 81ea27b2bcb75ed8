"""What a scripted example is made of: calls, what they must come to, and how to run one."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from pluginabi.payloads.common import Payload
from pluginapi import Body, ExecutorRequest, ModelRouteRequest, PluginError, Usage
from pluginapi.testing import FakeHost

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


@dataclass(frozen=True)
class Step:
    """One call and what it must come to: a dict for the answer, an `Error`, or a `Streamed`."""

    method: str
    params: Payload
    expected: Any
    usage: Usage | None = None


@dataclass(frozen=True)
class Error:
    """The error fields that were set, beside `origin`."""

    fields: Mapping[str, Any]


@dataclass(frozen=True)
class Streamed:
    """The opening result, the items, and how the stream ended."""

    items: list[Any]
    result: Mapping[str, Any] = field(default_factory=dict)
    usage: Usage | None = None
    error: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class Script:
    """One example under test."""

    folder: str
    steps: list[Step]
    config: Mapping[str, Any] = field(default_factory=dict)
    permissions: tuple[str, ...] = ()
    host: Callable[[], FakeHost] = FakeHost
    in_python: bool = True

    @property
    def directory(self) -> Path:
        return EXAMPLES / self.folder


def json_body(value: Any) -> Body:
    return Body.from_value(value)


def chat(text: str, **more: Any) -> Body:
    return json_body({"messages": [{"role": "user", "content": text}], **more})


def plain(value: Any) -> Any:
    """Structs as dicts without their defaults, bodies as what they say: comparable across carriers."""
    if isinstance(value, Body):
        data = value.to_bytes()
        try:
            return msgspec.json.decode(data)
        except msgspec.DecodeError:
            return data.decode()
    if isinstance(value, msgspec.Raw):
        return msgspec.json.decode(value)
    if isinstance(value, msgspec.Struct):
        fields = {name: getattr(value, name) for name in value.__struct_fields__}
        defaults = type(value)()
        return {name: plain(set_) for name, set_ in fields.items() if set_ != getattr(defaults, name)}
    if isinstance(value, Mapping):
        return {name: plain(member) for name, member in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(member) for member in value]
    return value


ROUTE = "model.route"


def route(model: str, **more: Any) -> ModelRouteRequest:
    return ModelRouteRequest(request_id="r1", source_format="openai", requested_model=model, **more)


def execute(model: str, body: Body, *, stream: bool = False) -> ExecutorRequest:
    return ExecutorRequest(
        request_id="r1",
        model=model,
        requested_model=model,
        source_format="openai",
        format="openai",
        stream=stream,
        body=body,
    )


async def run_step(caller: Any, step: Step) -> tuple[Any, Usage | None]:
    """What the call came to, in the terms of `Step.expected`."""
    try:
        if step.method != "executor.execute_stream":
            result, usage = await caller.reply(step.method, step.params)
            return plain(result), usage
        result, items = await caller.open_stream(step.method, step.params)
    except PluginError as error:
        return Error(_error(error)), None
    return await _read(result, items), None


async def _read(result: Any, items: Any) -> Streamed:
    seen: list[Any] = []
    raw: list[bytes] = []
    error: Mapping[str, Any] | None = None
    try:
        async for item in items:
            if item.raw:
                # A carrier may cut raw data anywhere; the bytes are what counts.
                raw.append(item.raw.to_bytes())
            else:
                seen.append(plain(item))
    except PluginError as raised:
        error = _error(raised)
    if raw:
        seen.append({"raw": b"".join(raw).decode()})
    return Streamed(seen, plain(result), items.usage, error)


def _error(error: PluginError) -> Mapping[str, Any]:
    return {name: value for name, value in plain(error.body).items() if name != "origin"}
