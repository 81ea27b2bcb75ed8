"""What a check came to, and the report of all of them."""

from collections.abc import Mapping, Sequence
from typing import Final, Literal, TypeAlias

from msgspec import Struct, field

Verdict: TypeAlias = Literal["pass", "fail", "skip"]
Level: TypeAlias = Literal["minimal", "full"]

SHOWN_MAX_CHARS: Final = 400


class Unmet(Exception):
    """An expectation that was not met: the check that runs has failed."""

    def __init__(self, expected: str, got: str) -> None:
        super().__init__(f"expected {expected}, got {got}")
        self.expected: Final = expected
        self.got: Final = got


class NotApplicable(Exception):
    """The check cannot be made with this plugin; the text says why."""


class Outcome(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One check. `note`: what was seen; `expected`, `got` and `stderr`: of a failed one; `reason`: of a skipped one."""

    id: str
    group: str
    sentence: str
    verdict: Verdict
    note: str = ""
    reason: str = ""
    expected: str = ""
    got: str = ""
    stderr: Sequence[str] = ()
    """The last lines the plugin had written to stderr."""
    duration_ms: float = 0.0


class Measurements(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Numbers of this run, on this machine: for comparing, never a verdict."""

    hello_ms: float | None = None
    """From starting the process to its hello."""
    call_method: str = ""
    call_count: int = 0
    call_p50_ms: float | None = None
    call_p99_ms: float | None = None
    memory_bytes: int | None = None
    """Resident, of the whole process group, after all calls."""


class Report(Struct, frozen=True, kw_only=True):
    """Everything about one run."""

    plugin: str
    version: str
    level: Level
    carrier: str
    command: Sequence[str]
    outcomes: Sequence[Outcome]
    measured: Measurements = field(default_factory=Measurements)
    duration_s: float = 0.0

    @property
    def ok(self) -> bool:
        return not self.failed

    @property
    def failed(self) -> list[Outcome]:
        return [outcome for outcome in self.outcomes if outcome.verdict == "fail"]

    @property
    def counts(self) -> Mapping[Verdict, int]:
        """How many passed, failed and were skipped."""
        counts: dict[Verdict, int] = {"pass": 0, "fail": 0, "skip": 0}
        for outcome in self.outcomes:
            counts[outcome.verdict] += 1
        return counts


def shown(value: object) -> str:
    """Any value as text of a bearable length."""
    text = value.decode(errors="replace") if isinstance(value, bytes) else str(value)
    return text if len(text) <= SHOWN_MAX_CHARS else f"{text[:SHOWN_MAX_CHARS]}… ({len(text)} characters)"
