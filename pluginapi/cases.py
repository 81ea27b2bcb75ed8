"""`cases.json`: calls of a plugin and what they must come to, in a form that suits every language.

    {"config": {"word": "x"}, "cases": [
      {"name": "other models are none of its business", "method": "model.route",
       "params": {"requested_model": "other"}, "answer": null}]}

`answer` is the whole result (absent, null and `{}` all mean no opinion), `items` are those of a stream, `error` is the
whole error object. The conformance kit runs them over the wire, `pluginapi.testing.check_case` in the test's process.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import msgspec
from msgspec import Struct, field

from pluginabi.body import StreamItem
from pluginabi.codec import encode
from pluginabi.errors import ErrorBody
from pluginabi.methods import PLUGIN_METHODS
from pluginabi.payloads.common import Payload

CASES_NAME: Final = "cases.json"


class Case(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One call."""

    name: str
    method: str
    params: Mapping[str, Any] = field(default_factory=dict)
    answer: Any = None
    items: Sequence[Any] = ()
    error: Any = None

    @property
    def streams(self) -> bool:
        """Whether the call has to be made with `stream`."""
        return PLUGIN_METHODS[self.method].stream

    def request(self) -> Payload:
        """The params as the method's struct. Raises msgspec.ValidationError."""
        request: Payload = _typed(self.params, PLUGIN_METHODS[self.method].request)
        return request

    @property
    def expected(self) -> dict[str, Any]:
        """What `told` has to say; members that have their default count as absent."""
        if self.error is not None:
            return told(error=_typed(self.error, ErrorBody))
        answer = _typed(self.answer or {}, PLUGIN_METHODS[self.method].response)
        return told(answer, items=[_typed(item, StreamItem) for item in self.items] if self.streams else None)


class CaseFile(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """All cases of a plugin, and the configuration they are run with."""

    config: Mapping[str, Any] = field(default_factory=dict)
    cases: Sequence[Case] = ()


def read_cases(path: Path) -> CaseFile:
    """Read a file of cases. Raises OSError, and ValueError that says what is wrong with it."""
    try:
        file = msgspec.json.decode(path.read_bytes(), type=CaseFile)
        for number, case in enumerate(file.cases, 1):
            _check(case, number)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: {error}") from error
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    return file


def told(
    answer: Payload | None = None, *, items: Sequence[StreamItem] | None = None, error: ErrorBody | None = None
) -> dict[str, Any]:
    """What a call came to, as plain JSON without defaults."""
    if error is not None:
        return {"error": {name: value for name, value in _plain(error).items() if name != "origin"}}
    seen = {"answer": _plain(answer) or None}
    return seen if items is None else {**seen, "items": [_plain(item) for item in items]}


def _check(case: Case, number: int) -> None:
    where = f"case {number} ({case.name})"
    spec = PLUGIN_METHODS.get(case.method)
    if spec is None:
        raise ValueError(f"{where}: there is no method {case.method}")
    kinds = (("params", case.params, spec.request), ("answer", case.answer or {}, spec.response))
    for part, value, kind in (*kinds, ("error", case.error or {}, ErrorBody)):
        unknown = sorted(set(value) - set(kind.__struct_fields__)) if isinstance(value, Mapping) else [value]
        if unknown:
            raise ValueError(f"{where}: {part} of {case.method} has no member {unknown[0]!r}")
        _typed(value, kind)


def _typed(value: Any, kind: Any) -> Any:
    # By way of JSON: some fields hold undecoded JSON.
    return msgspec.json.decode(msgspec.json.encode(value), type=kind)


def _plain(value: Any) -> Any:
    return None if value is None else msgspec.json.decode(encode(value))
