"""A report as text for people, as JSON, and as JUnit XML for build servers."""

import shlex
import xml.etree.ElementTree as ET
from collections.abc import Callable, Mapping
from typing import Final

import msgspec

from pluginapi.conformance.outcome import Outcome, Report, Verdict

_MARKS: Final[Mapping[Verdict, str]] = {"pass": "ok  ", "fail": "FAIL", "skip": "skip"}
_ID_WIDTH: Final = 22
_COMMAND_MAX_CHARS: Final = 100
_NOTE_MAX_CHARS: Final = 140


def as_text(report: Report) -> str:
    """One line per check, more for those that failed; the sum and the numbers at the end."""
    command = shlex.join(report.command)
    if len(command) > _COMMAND_MAX_CHARS:
        command = f"{command[:_COMMAND_MAX_CHARS]}…"
    lines = [f"{report.plugin} {report.version}".rstrip() + f": level {report.level}, {report.carrier}, {command}"]
    for outcome in report.outcomes:
        lines.extend(_lines(outcome))
    return "\n".join([*lines, *_sum(report)]) + "\n"


def _lines(outcome: Outcome) -> list[str]:
    lines = [f"  {_MARKS[outcome.verdict]} {outcome.id.ljust(_ID_WIDTH)} {outcome.sentence}"]
    indent = " " * 7
    if outcome.verdict == "skip":
        lines[0] += f" Not checked: {outcome.reason}."
    elif outcome.verdict == "pass" and outcome.note:
        note = outcome.note if len(outcome.note) <= _NOTE_MAX_CHARS else f"{outcome.note[:_NOTE_MAX_CHARS]}…"
        lines.append(f"{indent}{' ' * _ID_WIDTH} {note}")
    elif outcome.verdict == "fail":
        lines += [f"{indent}expected  {outcome.expected}", f"{indent}came      {outcome.got}"]
        lines += [f"{indent}stderr    {line}" for line in outcome.stderr]
    return lines


def _sum(report: Report) -> list[str]:
    counts = report.counts
    lines = [
        f"{counts['pass']} passed, {counts['fail']} failed, {counts['skip']} not checked, in {report.duration_s:.1f} s"
    ]
    measured = report.measured
    numbers = []
    if measured.hello_ms is not None:
        numbers.append(f"hello after {measured.hello_ms:.0f} ms")
    if measured.call_p50_ms is not None:
        numbers.append(
            f"{measured.call_method}: p50 {measured.call_p50_ms:.2f} ms, p99 {measured.call_p99_ms:.2f} ms"
            f" ({measured.call_count} calls)"
        )
    if measured.memory_bytes is not None:
        numbers.append(f"memory {measured.memory_bytes / 1024 / 1024:.0f} MiB")
    if numbers:
        lines.append(f"measured, no verdict: {'; '.join(numbers)}")
    return lines


def as_json(report: Report) -> str:
    """The report's own fields, and `ok` and `counts`."""
    document = {"ok": report.ok, "counts": report.counts, **msgspec.to_builtins(report)}
    return msgspec.json.format(msgspec.json.encode(document), indent=2).decode() + "\n"


def as_junit(report: Report) -> str:
    """One test suite; a check is a test case of the class `conformance.<group>`."""
    counts = report.counts
    suite = ET.Element(
        "testsuite",
        name=f"conformance {report.plugin}",
        tests=str(len(report.outcomes)),
        failures=str(counts["fail"]),
        skipped=str(counts["skip"]),
        errors="0",
        time=f"{report.duration_s:.3f}",
    )
    properties = ET.SubElement(suite, "properties")
    for name, value in msgspec.to_builtins(report.measured).items():
        ET.SubElement(properties, "property", name=name, value=str(value))
    for outcome in report.outcomes:
        case = ET.SubElement(
            suite,
            "testcase",
            classname=f"conformance.{outcome.group}",
            name=f"{outcome.id}: {outcome.sentence}",
            time=f"{outcome.duration_ms / 1000:.3f}",
        )
        if outcome.verdict == "skip":
            ET.SubElement(case, "skipped", message=_xml(outcome.reason))
        elif outcome.verdict == "fail":
            failure = ET.SubElement(case, "failure", message=_xml(f"expected {outcome.expected}, got {outcome.got}"))
            failure.text = _xml("\n".join(outcome.stderr))
    ET.indent(suite)
    return ET.tostring(suite, encoding="unicode", xml_declaration=True) + "\n"


def _xml(text: str) -> str:
    """Without the control characters that XML cannot carry."""
    return "".join(letter if letter >= " " or letter in "\t\n" else "\N{REPLACEMENT CHARACTER}" for letter in text)


FORMATS: Final[Mapping[str, Callable[[Report], str]]] = {"text": as_text, "json": as_json, "junit": as_junit}
