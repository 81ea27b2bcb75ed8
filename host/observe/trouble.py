"""The log of a command whose output is its result: on standard error, and what went wrong only."""

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import structlog
from structlog.typing import EventDict, WrappedLogger

LINES_SHOWN: Final = 20
"""What fails on every one of thousands of calls says nothing new after that."""


@contextmanager
def logs_of_trouble(level: int = logging.WARNING) -> Iterator[None]:
    """Lines of at least `level` go to standard error, the first `LINES_SHOWN` of them; then their number."""
    before = structlog.get_config()
    dropped = 0
    shown = 0

    def few(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
        nonlocal dropped, shown
        if shown == LINES_SHOWN:
            dropped += 1
            raise structlog.DropEvent
        shown += 1
        return event

    structlog.configure(
        processors=[few, *before["processors"]],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=False,
    )
    try:
        yield
    finally:
        structlog.configure(**before)
        if dropped:
            sys.stderr.write(f"… and {dropped} more lines\n")
