"""Every kind of new plugin in Go, Rust and C is built without warnings and keeps the contract and its cases."""

import pytest

from tests.support import toolchains
from tests.support.scaffolds import build, conformance, made

pytestmark = pytest.mark.timeout(400)
"""Compilers on a busy machine."""


@pytest.mark.parametrize("language", sorted(toolchains.COMPILERS))
async def test_a_new_plugin_of_any_kind_is_built_and_keeps_the_contract(language):
    toolchains.need(toolchains.COMPILERS[language])
    folders = made(language)
    build(language, folders)
    assert await conformance(folders) == {}


def test_the_tests_that_a_new_plugin_in_go_brings_pass():
    toolchains.need("go")
    (folder,) = [folder for folder in made("go") if folder.name == "my-executor"]
    with toolchains.one_at_a_time():
        assert toolchains.run("gofmt", "-l", ".", cwd=folder.parent) == ""
        assert "ok" in toolchains.run("go", "test", ".", cwd=folder)


def test_the_tests_and_the_makefile_that_a_new_plugin_in_rust_brings_work():
    toolchains.need("cargo")
    (folder,) = [folder for folder in made("rust") if folder.name == "my-executor"]
    with toolchains.one_at_a_time():
        (folder / "plugin").unlink(missing_ok=True)
        done = toolchains.run("make", "test", "JACKFIELD=true", cwd=folder)
    assert "1 passed" in done
    assert (folder / "plugin").exists()
