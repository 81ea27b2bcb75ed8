"""What the probe plugin saw during one cell; shared by the plugin and the test, which run in one process."""

import asyncio


class Recorder:
    """The methods called since the last `clear`, and whether the executor has begun."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.executing = asyncio.Event()

    def clear(self) -> None:
        self.calls = []
        self.executing = asyncio.Event()

    def saw(self, method: str) -> None:
        self.calls.append(method)


RECORDER = Recorder()
