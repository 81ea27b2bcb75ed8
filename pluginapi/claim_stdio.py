"""Takes descriptors 0 and 1 away from the plugin's code: the wire is private, so a `print` can never break it."""

import os
import sys
from dataclasses import dataclass
from typing import Final

_STDIN: Final = 0
_STDOUT: Final = 1
_STDERR: Final = 2


@dataclass(frozen=True, slots=True)
class WireEnds:
    """The two descriptors of the wire; above 2 and not inherited by child processes."""

    read_fd: int
    write_fd: int


def claim_stdio() -> WireEnds:
    """Move the wire to private descriptors; from now on stdin is empty and everything printed goes to stderr.

    Covers what Python buffers, what C libraries write and what children inherit. Call it before user code is imported,
    and once per process.
    """
    wire = WireEnds(os.dup(_STDIN), os.dup(_STDOUT))
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, _STDIN)
    os.close(nothing)
    os.dup2(_STDERR, _STDOUT)
    # What was printed while user code was being imported still lies in the buffer: it leaves for stderr now.
    sys.stdout.flush()
    # stderr is a log: a line that waits in a buffer is lost when the process is killed.
    reconfigure = getattr(sys.stdout, "reconfigure", None)
    if reconfigure is not None:
        reconfigure(line_buffering=True)
    return wire
