"""The log of the process as JSON lines, while a test runs."""

import io
import logging
from collections.abc import Iterator
from contextlib import contextmanager

import structlog

from host.observe.logs import configure_logs


@contextmanager
def logged_lines() -> Iterator[io.StringIO]:
    """Where the lines go; the log is as it was afterwards."""
    stream = io.StringIO()
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    configure_logs(stream=stream, readable=False)
    try:
        yield stream
    finally:
        structlog.reset_defaults()
        root.handlers[:], root.level = handlers, level
