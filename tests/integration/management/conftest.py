"""A short directory, because sockets lie in it."""

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture
def directory(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="jf-") as made:
        # The control socket of one test is never that of another.
        monkeypatch.setenv("XDG_RUNTIME_DIR", made)
        yield Path(made)
