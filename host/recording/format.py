"""The file of a recording: JSON lines, the first says what was recorded, the last why it ended."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import msgspec
from msgspec import Struct, field

FORMAT_VERSION: Final = 1
MAX_LINE_BYTES: Final = 4 * 1024 * 1024
"""A call that is larger is recorded without what it said."""
MAX_ITEMS: Final = 256
"""Items of a stream that are recorded."""


class RecordingError(Exception):
    """A file that is no recording; the message names the line."""


class _Line(Struct, frozen=True, kw_only=True, omit_defaults=True, tag_field="kind"):
    """Base of all lines."""


class Head(_Line, frozen=True, kw_only=True, tag="recording"):
    """The first line."""

    version: int = FORMAT_VERSION
    plugin: str
    plugin_version: str = ""
    host_version: str = ""
    started_at: str = ""
    redacted_bodies: bool = False
    config: Mapping[str, Any] = field(default_factory=dict)
    """As in the configuration file: references as written, secrets masked."""
    permissions: Sequence[str] = ()


class Happened(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What a call came to: an answer (with the items of its stream), or an error."""

    answer: Any = None
    usage: Any = None
    items: Sequence[Any] | None = None
    items_cut: bool = False
    """There were more."""
    error: Mapping[str, Any] | None = None


class Callback(Happened, frozen=True, kw_only=True, omit_defaults=True):
    """What the plugin asked of the host during a call."""

    method: str
    params: Any = None


class CallLine(Happened, frozen=True, kw_only=True, omit_defaults=True, tag_field="kind", tag="call"):
    """One call of the plugin; the lines are in the order of their ends.

    `number` says in which order the calls of one worker began, `at_ms` when, since the recording did.
    """

    number: int
    method: str
    request_id: str = ""
    at_ms: float = 0.0
    duration_ms: float = 0.0
    params: Any = None
    callbacks: Sequence[Callback] = ()
    masked: int = 0
    """Values that were replaced: with the real ones the plugin may decide otherwise."""
    omitted: str = ""
    """Why params and answer are missing."""


class Tail(_Line, frozen=True, kw_only=True, tag="end"):
    """The last line. `reason`: time, size, stopped (by whoever recorded) or shutdown (of the proxy)."""

    reason: str
    calls: int = 0
    unfinished: int = 0
    """Calls that had begun and not ended."""
    lost: int = 0
    """Calls that were not written because the reader was too slow."""
    not_recorded: int = 0
    """Calls that are about secrets only."""


class Recording(Struct, frozen=True, kw_only=True):
    """A file as read; `tail` is missing when it was cut off."""

    head: Head
    calls: Sequence[CallLine]
    """In the order in which they began."""
    tail: Tail | None = None


_HEAD: Final = msgspec.json.Decoder(Head)
_LINE: Final = msgspec.json.Decoder(CallLine | Tail)


def read_recording(path: Path) -> Recording:
    """Read a file. Raises RecordingError, and OSError when it cannot be read."""
    lines = path.read_bytes().splitlines()
    try:
        head = _HEAD.decode(lines[0] if lines else b"")
    except msgspec.DecodeError as error:
        raise RecordingError(f"{path}:1: this is no recording: {error}") from None
    if head.version != FORMAT_VERSION:
        raise RecordingError(f"{path}:1: a recording of version {head.version}; this program reads {FORMAT_VERSION}")
    calls: list[CallLine] = []
    tail = None
    for number, line in enumerate(lines[1:], start=2):
        try:
            decoded = _LINE.decode(line)
        except msgspec.DecodeError as error:
            if number == len(lines):
                break  # cut off in the middle of its last line
            raise RecordingError(f"{path}:{number}: {error}") from None
        if isinstance(decoded, Tail):
            tail = decoded
        else:
            calls.append(decoded)
    return Recording(head=head, calls=sorted(calls, key=lambda call: (call.at_ms, call.number)), tail=tail)
