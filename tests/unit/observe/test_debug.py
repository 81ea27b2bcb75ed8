"""Debug lines are switched on and off while the process runs."""

import io
import logging
from collections.abc import Iterator

import pytest
import structlog

from host.observe.logs import configure_logs, set_debug


@pytest.fixture
def stream() -> Iterator[io.StringIO]:
    root = logging.getLogger()
    before = structlog.get_config(), root.level, list(root.handlers)
    try:
        yield io.StringIO()
    finally:
        structlog.configure(**before[0])
        root.setLevel(before[1])
        root.handlers[:] = before[2]


def test_debug_lines_are_shown_from_now_on_and_no_longer(stream: io.StringIO):
    sink = configure_logs(stream=stream)
    log, library = structlog.get_logger("host.test"), logging.getLogger("some.library")
    for number, debug in enumerate((None, True, False)):
        if debug is not None:
            set_debug(debug)
        log.debug(f"own-{number}")
        library.debug("library-%d", number)
        logging.getLogger("watchfiles.main").debug("noise")
    sink.flush()
    text = stream.getvalue()
    assert [word in text for word in ("own-0", "own-1", "own-2")] == [False, True, False]
    assert [word in text for word in ("library-0", "library-1", "library-2")] == [False, True, False]
    assert "noise" not in text


def test_a_traceback_on_a_terminal_shows_no_values_of_variables(stream: io.StringIO):
    sink = configure_logs(stream=stream, readable=True)
    try:
        hidden = "pass" + "word-1"
        raise RuntimeError(len(hidden))
    except RuntimeError:
        structlog.get_logger("host.test").exception("test.failed")
    sink.flush()
    assert "RuntimeError" in stream.getvalue()
    assert "password-1" not in stream.getvalue()


def test_where_nobody_set_up_the_logs_nothing_is_changed():
    before = structlog.get_config()
    set_debug(True)
    assert structlog.get_config() == before
