"""The examples in compiled languages are built once, before the first test of this folder."""

import pytest

from tests.support.example_languages import build_examples


@pytest.fixture(scope="session", autouse=True)
def _built_examples() -> None:
    build_examples()
