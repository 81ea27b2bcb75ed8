"""What the author sees: one line at a time, with the time of day, and colours where there is a terminal."""

import os
import sys
import time
from collections.abc import Callable
from typing import Final, TextIO

_STYLES: Final = {"bold": "1", "dim": "2", "red": "31", "green": "32", "yellow": "33", "cyan": "36"}


class Screen:
    """Writes lines. Every line of an event begins with the time or with as much space."""

    def __init__(self, stream: TextIO | None = None, *, clock: Callable[[], float] = time.time) -> None:
        self._stream = stream if stream is not None else sys.stdout
        self._clock = clock
        self._coloured = self._stream.isatty() and "NO_COLOR" not in os.environ

    def styled(self, text: str, style: str) -> str:
        """`text` in a style, where the terminal knows styles."""
        return f"\x1b[{_STYLES[style]}m{text}\x1b[0m" if self._coloured else text

    def plain(self, text: str = "") -> None:
        """Text as it is."""
        self._write(text)

    def event(self, who: str, text: str, *, style: str = "") -> None:
        """One thing that happened: its first line with the time and who, the others below the text."""
        first, *rest = text.splitlines() or [""]
        at = time.strftime("%H:%M:%S", time.localtime(self._clock()))
        who = f"{who} | "
        lines = [first, *(" " * (len(at) + 1 + len(who)) + line for line in rest)]
        styled = [self.styled(line, style) if style else line for line in lines]
        self._write(f"{self.styled(at, 'dim')} {self.styled(who, 'cyan')}" + "\n".join(styled))

    def _write(self, text: str) -> None:
        try:
            self._stream.write(text + "\n")
            self._stream.flush()
        except (OSError, ValueError):
            pass  # nobody reads any more; the gateway goes on until it is told to stop
