"""The gateway under a sampler: `python sampled_host.py OUTPUT [jackfield's own arguments]`.

A timer of the process's own CPU time interrupts it, and each time the innermost frame that belongs to a step of the
table below gets a point. So time in the standard library, in C code and in the kernel counts for the step that called
it; what no step called (the event loop itself) counts as `loop`. At the end OUTPUT gets one JSON object of points. The
sampler costs well under one percent, and the gateway does not know about it.
"""

import json
import signal
import sys
from collections import Counter
from pathlib import Path
from types import FrameType
from typing import Final

ROOT: Final = Path(__file__).resolve().parents[2]
INTERVAL_S: Final = 0.001

# Path below the repository (a file or a folder) -> step. The longest match wins.
STEPS: Final = {
    "host/web": "web",
    "host/observe": "observe",
    "host/pipeline": "flow",
    "host/pipeline/access.py": "authenticate",
    "host/pipeline/route.py": "route",
    "host/pipeline/intercept.py": "intercept",
    "host/pipeline/patch.py": "intercept",
    "host/pipeline/resolve.py": "resolve",
    "host/registry": "resolve",
    "host/pipeline/pick.py": "pick",
    "host/credentials": "pick",
    "host/credentials/attach.py": "attach_secret",
    "host/pipeline/attach.py": "attach_secret",
    "host/pipeline/translate.py": "translate",
    "host/pipeline/settle.py": "settle",
    "host/pipeline/usage_of.py": "usage",
    "host/pipeline/scan.py": "usage",
    "host/runtime": "invoke",
    "host/runtime/callbacks.py": "callback",
    "host/runtime/callback_http.py": "callback",
    "host/upstream": "upstream_client",
    "pluginabi": "plugin_frames",
    "pluginapi": "plugin",
    "plugins": "plugin",
    "tests/bench/plugins": "plugin",
}
LIBRARY_STEPS: Final = {"aiohttp": "http_server", "structlog": "observe"}


def step_of_file(filename: str) -> str | None:
    """The step that a source file belongs to, None for files that belong to none."""
    path = Path(filename)
    for library, served in LIBRARY_STEPS.items():
        if library in path.parts:
            return served
    if not path.is_relative_to(ROOT):
        return None
    relative = path.relative_to(ROOT)
    for candidate in (relative, *relative.parents):
        if (step := STEPS.get(candidate.as_posix())) is not None:
            return step
    return None


class Sampler:
    """Counts points per step; `tick` is the signal handler."""

    def __init__(self) -> None:
        self.points: Counter[str] = Counter()
        self._known: dict[str, str | None] = {}

    def tick(self, _number: int, frame: FrameType | None) -> None:
        """One point for the step whose code (or whose callee) is running."""
        while frame is not None:
            filename = frame.f_code.co_filename
            if filename not in self._known:
                self._known[filename] = step_of_file(filename)
            if (step := self._known[filename]) is not None:
                self.points[step] += 1
                return
            frame = frame.f_back
        self.points["loop"] += 1


def main() -> None:
    """Serve, sample from the first SIGUSR1 on, and write the points when the gateway has ended."""
    output, sys.argv = Path(sys.argv[1]), ["jackfield", *sys.argv[2:]]
    sys.path.insert(0, str(ROOT))
    from host.cli import main as jackfield

    sampler = Sampler()
    signal.signal(signal.SIGPROF, sampler.tick)
    signal.signal(signal.SIGUSR1, lambda *_: signal.setitimer(signal.ITIMER_PROF, INTERVAL_S, INTERVAL_S))
    try:
        jackfield()
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        output.write_text(json.dumps(sampler.points))


if __name__ == "__main__":
    main()
