"""A plausible request for every method, and which methods are called at all."""

from collections.abc import Mapping, Sequence
from typing import Any, Final

import msgspec
from msgspec import Raw

from pluginabi.body import Body, StreamItem
from pluginabi.codec import encode
from pluginabi.methods import PLUGIN_METHODS
from pluginabi.payloads.common import CredentialHandle, ModelInfo
from pluginabi.payloads.routing import Candidate

STREAMING: Final = "executor.execute_stream"
SIDE_EFFECTS: Final = frozenset(
    (
        "auth.login.start",
        "auth.login.poll",
        "auth.refresh",
        "auth.save",
        "command_line.execute",
        "management.handle",
        "route.handle",
    )
)
"""Never called without a sample of the author: they act on the world outside, or need real secrets."""

_PROMPT: Final = "Tell me a story about a socket. " * 16
"""Long enough that a plugin which streams letter by letter needs more than one window of credit."""
CHAT: Final[Mapping[str, Any]] = {
    "model": "conformance",
    "messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": _PROMPT}],
    "temperature": 0.5,
    "tools": [],
}
_BODY: Final = Body.from_value(CHAT)
_CREDENTIAL: Final = CredentialHandle(handle="conformance", provider="conformance", label="conformance")

_VALUES: Final[Mapping[str, Any]] = {
    "request_id": "conformance-1",
    "source_format": "openai",
    "from_format": "openai",
    "to_format": "openai",
    "format": "openai",
    "model": "conformance",
    "requested_model": "conformance",
    "provider": "conformance",
    "providers": ("conformance",),
    "available_providers": ("conformance",),
    "endpoint": "/v1/chat/completions",
    "method": "POST",
    "path": "/v1/chat/completions",
    "client_address": "127.0.0.1",
    "headers": {"content-type": ("application/json",), "user-agent": ("conformance",)},
    "candidates": (Candidate(id="a", provider="conformance"), Candidate(id="b", provider="conformance")),
    "credential": _CREDENTIAL,
    "body": _BODY,
    "body_size": len(_BODY.to_bytes()),
    "items": (StreamItem(body=Body.from_value({"choices": [{"index": 0, "delta": {"content": "Hi"}}]})),),
}
_OF_METHOD: Final[Mapping[str, Mapping[str, Any]]] = {
    STREAMING: {"stream": True},
    "executor.http_request": {"method": "GET", "url": "https://upstream.test/v1/models"},
    "thinking.apply": {"model": ModelInfo(id="conformance")},
    "auth.parse": {"file_name": "conformance.json", "file": Raw(b'{"type":"conformance"}')},
    "response.intercept_stream_chunk": {"last": True},
}
_CALM_FIRST: Final = ("model.route", "scheduler.pick", "request.", "response.", "usage.", "frontend_auth.", "executor.")
"""What is used for small calls: the cheap decisions before what may go upstream."""


def callable_methods(capabilities: Sequence[str], given: Mapping[str, bytes]) -> list[str]:
    """What the kit calls of what a hello lists, the cheapest first. `given` are the author's own samples."""
    wanted = [
        name
        for name in capabilities
        if name in PLUGIN_METHODS and not name.startswith("plugin.") and (name not in SIDE_EFFECTS or name in given)
    ]
    return sorted(wanted, key=_rank)


def _rank(method: str) -> tuple[int, bool, str]:
    family = next((rank for rank, prefix in enumerate(_CALM_FIRST) if method.startswith(prefix)), len(_CALM_FIRST))
    return family, method == STREAMING, method


def sample(method: str, *, inputs: Sequence[str], body: Body | None = None) -> bytes:
    """Params of a call; of the body only what `inputs` asks for, as a host does it. `body` replaces the usual one."""
    kind = PLUGIN_METHODS[method].request
    fields = set(kind.__struct_fields__)
    values = {name: value for name, value in _VALUES.items() if name in fields}
    values.update(_OF_METHOD.get(method, {}))
    if body is not None:
        values["body"] = body
    elif not {"body", "body:exact"} & set(inputs):
        values.pop("body", None)
    if "body_parts" in fields:
        pointers = [word.removeprefix("body:") for word in inputs if word.startswith("body:/")]
        values["body_parts"] = {pointer: part for pointer in pointers if (part := _at(pointer)) is not None}
    return encode(kind(**values))


def has_body(method: str) -> bool:
    """Whether the params of a method can carry a body."""
    return "body" in PLUGIN_METHODS[method].request.__struct_fields__


def _at(pointer: str) -> Any:
    """The part of the sample body at a JSON pointer; None when nothing is there."""
    value: Any = CHAT
    for part in pointer.split("/")[1:]:
        key = part.replace("~1", "/").replace("~0", "~")
        try:
            value = value[int(key)] if isinstance(value, list) else value[key]
        except (KeyError, IndexError, ValueError, TypeError):
            return None
    return value


def read_samples(text: str | bytes) -> dict[str, bytes]:
    """The author's samples: a JSON object of method to params. Raises ValueError."""
    try:
        given = msgspec.json.decode(text, type=dict[str, Raw])
    except msgspec.DecodeError as error:
        raise ValueError(f"samples are a JSON object of method to params: {error}") from error
    for method, params in given.items():
        if method not in PLUGIN_METHODS:
            raise ValueError(f"samples: there is no method {method}")
        try:
            msgspec.json.decode(params, type=PLUGIN_METHODS[method].request)
        except msgspec.DecodeError as error:
            raise ValueError(f"samples: {method}: {error}") from error
    return {method: bytes(params) for method, params in given.items()}
