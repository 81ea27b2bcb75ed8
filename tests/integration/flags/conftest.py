"""A site with a configuration."""

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.serve.conftest import Site


@pytest.fixture
def site() -> Iterator[Site]:
    # Short, because the control socket's path has a limit.
    with tempfile.TemporaryDirectory(prefix="jf-") as made:
        site = Site(Path(made))
        site.configure()
        yield site
