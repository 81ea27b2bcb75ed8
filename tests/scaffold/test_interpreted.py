"""Every kind of new plugin in Python, Node and shell keeps the contract and its cases, and its own tests pass."""

import sys

import pytest

from tests.support import toolchains
from tests.support.scaffolds import conformance, made

pytestmark = pytest.mark.timeout(300)


@pytest.mark.parametrize("language", ["node", "python", "shell"])
async def test_a_new_plugin_of_any_kind_keeps_the_contract(language):
    toolchains.need({"python": "sh", "node": "node", "shell": "jq"}[language])
    assert await conformance(made(language)) == {}


def test_the_tests_that_new_plugins_in_python_bring_pass_and_their_code_is_clean():
    folders = made("python")
    names = [folder.name for folder in folders]
    done = toolchains.run(
        *(sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--rootdir", ".", "-c", "/dev/null"),
        *names,
        cwd=folders[0].parent,
        PYTHONPATH=str(toolchains.ROOT),
    )
    assert " passed" in done and "failed" not in done
    rules = ("--isolated", "--line-length", "120")
    for folder in folders:
        toolchains.run(sys.executable, "-m", "ruff", "check", *rules, "--select", "E,F,I,UP,B", ".", cwd=folder)
    toolchains.run(sys.executable, "-m", "ruff", "format", "--check", *rules, ".", cwd=folders[0].parent)


def test_the_tests_that_new_plugins_in_node_bring_pass():
    toolchains.need("node")
    folders = made("node")
    tests = [f"{folder.name}/plugin.test.mjs" for folder in folders]
    done = toolchains.run("node", "--test", *tests, cwd=folders[0].parent)
    assert "# fail 0" in done or "fail 0" in done
