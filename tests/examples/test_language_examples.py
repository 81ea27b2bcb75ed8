"""What the examples in Go, Rust, C and shell do behind a real proxy, and their own tests."""

import asyncio
from typing import Any

import aiohttp
import pytest

from host.scaffold.support_files import support_file
from tests.support import toolchains
from tests.support.example_languages import COMPILED, GO_COUNTDOWN, need_compiler
from tests.support.example_proxy import CHAT, acme, example_proxy
from tests.support.example_steps import EXAMPLES, chat, execute
from tests.support.fake_upstream import running_upstream
from tests.support.plugin_process import started
from tests.support.proxy import RunningProxy

SUPPORT_FILES = sorted(path for path in EXAMPLES.rglob("jackfield.*") if "target" not in path.parts)


@pytest.fixture(autouse=True)
def working_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


async def post(running: RunningProxy, path: str, body: dict[str, Any]) -> None:
    """A request that has to succeed."""
    async with aiohttp.ClientSession() as client, client.post(f"{running.url}{path}", json=body) as answer:
        assert answer.status == 200, await answer.text()


async def test_go_writes_the_effort_that_the_model_name_asks_for_into_the_upstream_request(tmp_path):
    need_compiler("go-thinking")
    async with running_upstream() as upstream:
        section = {"provider": "openai-compatible-acme"}
        async with example_proxy(tmp_path, {"go-thinking": section}, **acme(upstream, "m")) as running:
            for model in ("m(max)", "m(100)", "m"):
                await post(running, "/v1/chat/completions", {**CHAT, "model": model})
    assert [(it.model, it.json.get("reasoning_effort")) for it in upstream.requests] == [
        ("m", "high"),
        ("m", "low"),
        ("m", None),
    ]


async def test_rust_writes_a_budget_within_the_models_limits_into_the_upstream_request(tmp_path):
    need_compiler("rust-thinking")
    async with running_upstream() as upstream:
        model = {"name": "c", "thinking": {"min": 1024, "max": 2000}}
        keys = [{"api-key": "k", "base-url": upstream.url, "models": [model]}]
        async with example_proxy(tmp_path, {"rust-thinking": {}}, **{"claude-api-key": keys}) as running:
            await post(running, "/v1/messages", {**CHAT, "model": "c(high)", "max_tokens": 10})
    (request,) = upstream.requests
    assert (request.json["thinking"], request.json["max_tokens"]) == ({"type": "enabled", "budget_tokens": 2000}, 3024)


async def test_the_countdown_stops_when_its_client_leaves(tmp_path):
    need_compiler("go-countdown")
    async with started(
        [str(EXAMPLES / "go-countdown" / "plugin")], plugin_id="go-countdown", cwd=tmp_path, directory=tmp_path
    ) as plugin:
        params = execute("countdown", chat("from 90000"), stream=True)
        _, items = await plugin.open_stream("executor.execute_stream", params)
        async with asyncio.timeout(60):
            first = await anext(items)
            await items.aclose()
            # The call is closed, so the plugin is free for the end.
            assert await plugin.call("model.route", GO_COUNTDOWN.steps[0].params)
        assert first.body.value()["choices"][0]["delta"] == {"content": "90000 "}


async def test_an_open_gate_tells_the_upstream_since_when(tmp_path):
    async with running_upstream() as upstream:
        async with example_proxy(tmp_path, {"shell-gate": {}}, **acme(upstream, "m")) as running:
            await post(running, "/v1/chat/completions", {**CHAT, "model": "m"})
    (request,) = upstream.requests
    assert request.headers["x-gate-open-since"].endswith("Z")


@pytest.mark.parametrize("path", SUPPORT_FILES, ids=lambda path: str(path.relative_to(EXAMPLES)))
def test_an_example_carries_the_support_file_that_new_plugins_get(path):
    assert path.read_text() == support_file(path.name)


@pytest.mark.parametrize("folder", [folder for folder, compiler in COMPILED.items() if compiler != "cc"])
def test_the_own_tests_of_an_example_pass(folder):
    need_compiler(folder)
    toolchains.make(EXAMPLES / folder, "test")


def test_the_compilers_of_the_examples_are_installed_for_the_tests():
    script = (toolchains.ROOT / "tests" / "install_tools.sh").read_text()
    assert [name for name in ("node", "jq", *COMPILED.values()) if f"command -v {name} " not in script] == []
