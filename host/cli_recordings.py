"""What `jackfield record` and `jackfield replay` do."""

import asyncio
import http.client
import itertools
import os
import queue
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from datetime import datetime
from pathlib import Path
from typing import Any, BinaryIO, Final
from urllib.parse import quote

import click
import msgspec

from host import control
from host.config.values import seconds
from host.observe.trouble import logs_of_trouble
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
    workers = _workers(config_path)
    wanted = f"seconds={max(1, round(limit_s))}&max_bytes={max_mb * MIB // len(workers)}"
    path = f"/plugins/{quote(plugin_id, safe='')}/record?{wanted}&redact_bodies={str(redact_bodies).lower()}"
    with ExitStack() as stack:
        answers = [stack.enter_context(control.ask_for_lines(config_path, path, worker=number)) for number in workers]
        running = [answer for answer in answers if answer is not None]
        if not running:
            click.echo(f"no proxy runs on {config_path}; start one with `jackfield serve`", err=True)
            return 1
        for status, lines in running:
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
            tail = _write([lines for _, lines in running], file)
    click.echo(f"{target}: {tail.calls} calls; {_ENDED.get(tail.reason, tail.reason)}{_left_out(tail)}")
    return 0


def _workers(config_path: Path) -> list[int]:
    """The numbers of the workers that may run."""
    others = itertools.takewhile(lambda number: control.socket_path(config_path, number).exists(), itertools.count(2))
    return [1, *others]


def _write(streams: Sequence[Iterator[bytes]], file: BinaryIO) -> Tail:
    """Copy the lines of all workers: the head of the first, the calls of all, and one last line."""
    lines: queue.Queue[bytes | None] = queue.Queue(maxsize=1024)
    for stream in streams:
        threading.Thread(target=_copy, args=(stream, lines), daemon=True, name="recording").start()
    tails: list[Tail] = []
    calls = heads = left = 0
    reason = ""
    try:
        while left < len(streams):
            line = lines.get()
            if line is None:
                left += 1
            elif line.startswith(b'{"kind":"end"'):
                tails.append(msgspec.json.decode(line, type=Tail))
            elif line.startswith(b'{"kind":"recording"'):
                heads += 1
                file.write(line if heads == 1 else b"")
            elif line != b"\n":
                calls += 1
                file.write(line)
            file.flush()
    except KeyboardInterrupt:
        reason = "stopped"
    reasons = {tail.reason for tail in tails} | ({"shutdown"} if len(tails) < len(streams) else set())
    tail = Tail(
        reason=reason or next((it for it in ("size", "shutdown", "stopped") if it in reasons), "time"),
        calls=calls,
        unfinished=sum(it.unfinished for it in tails),
        lost=sum(it.lost for it in tails),
        not_recorded=sum(it.not_recorded for it in tails),
    )
    file.write(msgspec.json.encode(tail) + b"\n")
    return tail


def _copy(stream: Iterator[bytes], lines: "queue.Queue[bytes | None]") -> None:
    """Lines of one worker, then None."""
    try:
        for line in stream:
            lines.put(line)
    except (OSError, ValueError, http.client.HTTPException):
        pass  # the proxy went down, or the recording was stopped: the last line is missing, and that says it
    lines.put(None)


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
        with logs_of_trouble():
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
