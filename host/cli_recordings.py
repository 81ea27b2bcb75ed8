"""What `jackfield record` and `jackfield replay` do."""

import asyncio
import logging
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

import click
import msgspec
import structlog

from host import control
from host.config.values import seconds
from host.recording.format import RecordingError, Tail, read_recording
from host.recording.replay import ReplayedCall, ReplayError, ReplayReport, replay

MIB: Final = 1024 * 1024
_ENDED: Final[Mapping[str, str]] = {
    "time": "the time was up",
    "size": "the file is as large as it may be",
    "stopped": "it was stopped",
    "shutdown": "the proxy went down",
}


def record_plugin(
    config_path: Path, plugin_id: str, *, out: Path | None, duration: str, max_mb: int, redact_bodies: bool
) -> int:
    """Record until the proxy says that it is over, or Ctrl-C; 0 when there is a file."""
    try:
        limit_s = seconds(duration)
    except ValueError as error:
        click.echo(f"--for: {error}", err=True)
        return 2
    target = out or Path(f"{plugin_id}-{datetime.now():%Y%m%d-%H%M%S}.jsonl")
    wanted = f"seconds={max(1, round(limit_s))}&max_bytes={max_mb * MIB}&redact_bodies={str(redact_bodies).lower()}"
    with control.ask_for_lines(config_path, f"/plugins/{quote(plugin_id, safe='')}/record?{wanted}") as answer:
        if answer is None:
            click.echo(f"no proxy runs on {config_path}; start one with `jackfield serve`", err=True)
            return 1
        status, lines = answer
        if status != 200:
            document = msgspec.json.decode(b"".join(lines))
            click.echo(document.get("message") or document.get("error"), err=True)
            return 1
        try:
            # Whoever can read it learns what clients said.
            descriptor = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        except OSError as error:
            click.echo(f"{target}: {error.strerror}", err=True)
            return 1
        click.echo(f"recording {plugin_id} into {target} for {duration}; Ctrl-C ends it", err=True)
        with open(descriptor, "wb") as file:
            tail = _write(lines, file)
    click.echo(f"{target}: {tail.calls} calls; {_ENDED.get(tail.reason, tail.reason)}{_left_out(tail)}")
    return 0


def _write(lines: Iterator[bytes], file: Any) -> Tail:
    """Copy the lines; a recording that is broken off gets the last line that it lacks."""
    calls = 0
    try:
        for line in lines:
            if line == b"\n":
                continue
            file.write(line)
            file.flush()
            if line.startswith(b'{"kind":"end"'):
                return msgspec.json.decode(line, type=Tail)
            calls += line.startswith(b'{"kind":"call"')
        reason = "shutdown"
    except KeyboardInterrupt:
        reason = "stopped"
    tail = Tail(reason=reason, calls=calls)
    file.write(msgspec.json.encode(tail) + b"\n")
    return tail


def _left_out(tail: Tail) -> str:
    parts = [
        (tail.unfinished, "had not ended"),
        (tail.lost, "were lost because they came too fast"),
        (tail.not_recorded, "were about secrets and not recorded"),
    ]
    return "".join(f"; {number} more {why}" for number, why in parts if number)


def replay_file(file: Path, directory: Path, *, plugin_config: str | None, ignore: Sequence[str], as_json: bool) -> int:
    """Replay and report; 0 nothing differs, 1 something does, 2 it cannot be tried."""
    try:
        config = None if plugin_config is None else msgspec.json.decode(plugin_config, type=dict[str, Any])
        recording = read_recording(file)
        with _logs_of_trouble():
            report = asyncio.run(replay(recording, directory, config=config, ignore=ignore))
    except msgspec.DecodeError as error:
        click.echo(f"--plugin-config is a JSON object: {error}", err=True)
        return 2
    except (RecordingError, ReplayError, OSError) as error:
        click.echo(str(error), err=True)
        return 2
    if as_json:
        document = {**msgspec.to_builtins(report), "same": not report.changed}
        click.echo(msgspec.json.format(msgspec.json.encode(document)).decode())
    else:
        click.echo("\n".join(_lines(report)))
    return 1 if report.changed else 0


@contextmanager
def _logs_of_trouble() -> Iterator[None]:
    """What goes wrong in the plugin is told on stderr, the rest of its life is not."""
    before = structlog.get_config()
    structlog.configure(
        wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )
    try:
        yield
    finally:
        structlog.configure(**before)


def _lines(report: ReplayReport) -> Iterator[str]:
    yield f"{report.plugin}: recorded with {report.recorded_version or '?'}, replayed with {report.version}"
    for call in report.calls:
        if call.differences:
            yield f"  call {call.number}  {call.method}{_request(call)}"
            yield from (f"    {difference.text()}" for difference in call.differences)
            if call.masked:
                yield f"    ({call.masked} values of this call are masked in the recording)"
    reasons: dict[str, int] = {}
    for call in report.skipped:
        reasons[f"{call.method}: {call.skipped}"] = reasons.get(f"{call.method}: {call.skipped}", 0) + 1
    yield from (f"  skipped {count} x {reason}" for reason, count in reasons.items())
    same = len(report.calls) - len(report.changed) - len(report.skipped)
    yield f"{len(report.calls)} calls: {same} the same, {len(report.changed)} different, {len(report.skipped)} skipped"


def _request(call: ReplayedCall) -> str:
    return f"  request {call.request_id}" if call.request_id else ""
