"""An author's mistake is the same error in every carrier: a 500 that names plugin hook and field, at once."""

import json
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from tests.integration.serve.conftest import CHAT, provider
from tests.support.fake_upstream import FakeUpstream
from tests.support.proxy import running_proxy

PLUGIN = """\
from pluginapi import Plugin, RequestInterceptResponse, Termination

class Author(Plugin):
    async def request_intercept_before(self, request):
        return RequestInterceptResponse({answer})
"""
MANIFEST = """\
id = "author"
version = "1"
entry = "author:Author"
[on_error]
"request.intercept_before" = "fail"
"""


@pytest.fixture(params=["process", "inprocess"])
def runtime(request: pytest.FixtureRequest) -> str:
    found: str = request.param
    return found


async def asked(
    directory: Path, client: aiohttp.ClientSession, upstream: FakeUpstream, *, answer: str, runtime: str
) -> tuple[int, Any]:
    folder = directory / "plugins" / "author"
    folder.mkdir(parents=True)
    (folder / "plugin.toml").write_text(MANIFEST)
    (folder / "author.py").write_text(PLUGIN.format(answer=answer))
    plugins = {
        "enabled": True,
        "configs": {"author": {"enabled": True}},
        "policy": {"author": {"runtime": runtime}},
    }
    config = json.dumps({"openai-compatibility": provider(upstream), "plugins": plugins})
    async with running_proxy(config, directory=directory) as proxy:
        async with client.post(f"{proxy.url}/v1/chat/completions", json=CHAT) as response:
            return response.status, await response.json()


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        ("clear_headers='x-a'", "clear_headers: expected a list, got 'x-a'"),
        ("terminate={'status': 200}", "terminate: expected Termination"),
        ("terminate=Termination(status='200')", "terminate: status: expected int, got '200'"),
        ("headers={'x-a': 1}", "headers: expected lists of strings"),
    ],
    ids=["list", "struct", "number", "headers"],
)
async def test_a_mistake_in_an_answer_is_an_error_that_names_it(
    tmp_path: Path, client: aiohttp.ClientSession, upstream: FakeUpstream, runtime: str, answer: str, words: str
) -> None:
    status, document = await asked(tmp_path, client, upstream, answer=answer, runtime=runtime)
    assert status == 500
    assert words in document["error"]["message"]
    assert "request.intercept_before" in document["error"]["message"]
    assert upstream.requests == []


async def test_short_spellings_mean_the_same(
    tmp_path: Path, client: aiohttp.ClientSession, upstream: FakeUpstream, runtime: str
) -> None:
    answer = "patch={'user': 'x'}, headers={'X-A': 'yes'}"
    status, _ = await asked(tmp_path, client, upstream, answer=answer, runtime=runtime)
    assert status == 200
    sent = await upstream.request()
    assert sent.json == {**CHAT, "user": "x"}
    assert sent.headers["x-a"] == "yes"
