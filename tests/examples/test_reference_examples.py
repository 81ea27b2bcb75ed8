"""What the examples for scheduling, lifecycle, normalisers, translators and usage do behind a real proxy."""

import asyncio
import os
from contextlib import AsyncExitStack

import msgspec
import openai
import pytest
import trustme

from pluginapi import PluginError, SchedulerPickRequest
from pluginapi.testing import PluginHarness
from tests.support.example_proxy import CHAT, acme, example_proxy, reconfigured, settled
from tests.support.example_reference import candidates
from tests.support.example_steps import EXAMPLES, plain
from tests.support.fake_upstream import Behaviour
from tests.support.in_process import load_class

PATH = "/v1/chat/completions"


@pytest.fixture(scope="module")
def one_certificate(tmp_path_factory):
    """The SDK loads all the certificates there are otherwise, which takes longer than the tests."""
    file = tmp_path_factory.mktemp("ca") / "ca.pem"
    trustme.CA().cert_pem.write_to_path(file)
    before = os.environ.get("SSL_CERT_FILE")
    os.environ["SSL_CERT_FILE"] = str(file)
    yield
    if before is None:
        del os.environ["SSL_CERT_FILE"]
    else:
        os.environ["SSL_CERT_FILE"] = before


async def ask(http, proxy, model, *, key=None, **more):
    headers = {"authorization": f"Bearer {key}"} if key else {}
    async with http.post(f"{proxy.url}{PATH}", json={"model": model, **CHAT, **more}, headers=headers) as response:
        return response.status, response.headers, await response.json()


PINNED = load_class(EXAMPLES / "pinned-scheduler", "pinned_scheduler:PinnedScheduler")


@pytest.mark.parametrize(
    ("config", "asked", "answer"),
    [
        ({"delegate": "random"}, candidates("a", "b"), {}),
        ({"delegate": " fill-first ", "auth_id": "b"}, candidates("a", "b"), {"delegate": "fill-first"}),
        ({"auth_id": "c"}, candidates("a", "b"), {}),
        ({"auth_id": ""}, candidates("a", "b"), {}),
        ({"auth_id": "b"}, SchedulerPickRequest(), {}),
    ],
    ids=["W149-unknown-delegate", "W149-delegate-before-id", "W149-not-among", "W149-blank", "W149-no-candidates"],
)
async def test_W149_the_scheduler_example_answers_as_it_is_configured(config, asked, answer):
    async with PluginHarness(PINNED, config=config) as plugin:
        assert plain(await plugin.call("scheduler.pick", asked)) == answer


async def test_W149_the_scheduler_example_denies_before_anything_else():
    config = {"deny": True, "delegate": "fill-first", "auth_id": "a"}
    async with PluginHarness(PINNED, config=config) as plugin:
        with pytest.raises(PluginError) as denied:
            await plugin.call("scheduler.pick", candidates("a"))
    assert (denied.value.code, denied.value.http_status) == ("scheduler_denied", 403)


async def test_the_pinned_scheduler_decides_which_key_serves(tmp_path, upstream, http):
    base = acme(upstream, "m", keys=3)
    async with example_proxy(tmp_path, {"pinned-scheduler": {}}, **base) as proxy:
        ids = [credential.id for credential in proxy.proxy.gateway.state.pool.credentials]
        await reconfigured(proxy, {"pinned-scheduler": {"auth_id": ids[1]}}, **base)
        assert [(await ask(http, proxy, "m"))[0] for _ in range(3)] == [200, 200, 200]
        await reconfigured(proxy, {"pinned-scheduler": {"delegate": "fill-first", "auth_id": ids[1]}}, **base)
        assert [(await ask(http, proxy, "m"))[0] for _ in range(2)] == [200, 200]
        await reconfigured(proxy, {"pinned-scheduler": {"delegate": "no such strategy"}}, **base)
        assert [(await ask(http, proxy, "m"))[0] for _ in range(3)] == [200, 200, 200]
        await reconfigured(proxy, {"pinned-scheduler": {"deny": True}}, **base)
        status, _, body = await ask(http, proxy, "m")
        assert (status, body["error"]["code"]) == (403, "scheduler_denied")
    keys = [request.headers["Authorization"].removeprefix("Bearer ") for request in upstream.requests]
    assert len(set(keys[:3])) == 1 and len(set(keys[3:5])) == 1
    # Without an opinion the built-in strategy takes turns.
    assert sorted(keys[5:]) == ["k1", "k2", "k3"]


async def test_exclusive_auth_shuts_out_the_api_keys(tmp_path, http):
    async with example_proxy(tmp_path, {"exclusive-auth": {}}, **{"api-keys": ["a-key"], "demo": True}) as proxy:
        url = f"{proxy.url}/v1/models"
        seen = {}
        for said in ("", "other", "exclusive"):
            headers = {"authorization": "Bearer a-key", **({"X-Example-Frontend-Auth": said} if said else {})}
            async with http.get(url, headers=headers) as response:
                seen[said] = response.status, "wrong value" in await response.text()
    assert seen == {"": (401, False), "other": (401, True), "exclusive": (200, False)}


async def test_one_request_too_many_is_told_to_come_back_and_a_finished_one_makes_room(tmp_path, upstream, http):
    upstream.behave("held", Behaviour(hang=True))
    config = {"concurrency-limit": {"max_concurrency": 2}}
    async with example_proxy(tmp_path, config, **acme(upstream, "held", "m")) as proxy:
        held = [asyncio.create_task(ask(http, proxy, "held")) for _ in range(2)]
        await upstream.request(1)
        status, headers, body = await ask(http, proxy, "m")
        assert (status, headers["Retry-After"], body["error"]["code"]) == (429, "1", "too_many_requests")
        assert len(upstream.requests) == 2
        # Clients that leave are told of as well: their places are free again.
        for task in held:
            task.cancel()
        await asyncio.wait(held)
        async with asyncio.timeout(60):
            while (await ask(http, proxy, "m"))[0] == 429:
                pass
        await settled()
        for _ in range(3):
            assert (await ask(http, proxy, "m"))[0] == 200
            await settled()
        status, _, body = await ask(http, proxy, "m", user="blocked")
        assert (status, body["error"]["code"]) == (403, "rejected_keyword")


async def test_a_changed_limit_keeps_count_of_who_is_in(tmp_path, upstream, http):
    upstream.behave("held", Behaviour(hang=True))
    base = acme(upstream, "held", "m")
    async with example_proxy(tmp_path, {"concurrency-limit": {"max_concurrency": 2}}, **base) as proxy:
        held = asyncio.create_task(ask(http, proxy, "held"))
        await upstream.request(0)
        await reconfigured(proxy, {"concurrency-limit": {"max_concurrency": 1}}, **base)
        assert (await ask(http, proxy, "m"))[0] == 429
        await reconfigured(proxy, {"concurrency-limit": {"max_concurrency": 2}}, **base)
        assert (await ask(http, proxy, "m"))[0] == 200
        held.cancel()
        await asyncio.wait([held])


async def test_the_normaliser_sees_the_upstreams_format_and_changes_what_goes_upstream_only(tmp_path, upstream, http):
    base = acme(upstream, "gpt-5.5", "gpt-5.5-mini")
    section = {"fast": True, "formats": ["openai"]}
    async with example_proxy(tmp_path, {"codex-service-tier": section}, **base) as proxy:
        await ask(http, proxy, "gpt-5.5", seed=1)
        await ask(http, proxy, "gpt-5.5-mini")
        # Its default is the Codex protocol, which this provider does not speak.
        await reconfigured(proxy, {"codex-service-tier": {"fast": True}}, **base)
        await ask(http, proxy, "gpt-5.5")
        await reconfigured(proxy, {"codex-service-tier": {**section, "fast": False}}, **base)
        await ask(http, proxy, "gpt-5.5")
    tiers = [request.json.get("service_tier") for request in upstream.requests]
    assert tiers == ["priority", None, None, None]
    assert upstream.requests[0].json["seed"] == 1


async def test_an_openai_client_reads_telegrams(tmp_path, http, one_certificate):
    async with AsyncExitStack() as stack:
        proxy = await stack.enter_async_context(example_proxy(tmp_path, {"telegraph": {"office": "Paris"}}))
        client = await stack.enter_async_context(
            openai.AsyncOpenAI(api_key="none", base_url=f"{proxy.url}/v1", max_retries=0, timeout=60)
        )
        assert [model.id async for model in client.models.list()] == ["telegraph"]
        parts = [{"type": "text", "text": "arriving"}, {"type": "text", "text": "monday"}]
        asked = {"model": "telegraph", "messages": [{"role": "user", "content": parts}]}
        answer = await client.chat.completions.create(**asked)
        text = "RECEIVED ARRIVING MONDAY. PARIS."
        assert answer.choices[0].message.content == text
        assert answer.choices[0].finish_reason == "stop" and answer.system_fingerprint == "Paris"
        assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (2, 6)
        chunks = [chunk async for chunk in await client.chat.completions.create(**asked, stream=True)]
        assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == text
        assert [chunk.choices[0].finish_reason for chunk in chunks] == [None] * 6 + ["stop"]
        assert chunks[0].choices[0].delta.role == "assistant" and chunks[-1].usage.total_tokens == 8
        with pytest.raises(openai.UnprocessableEntityError) as refused:
            await client.chat.completions.create(model="telegraph", messages=[], stream=True)
        assert refused.value.code == "empty_telegram"
        body = {"model": "telegraph", "max_tokens": 9, **CHAT}
        async with http.post(f"{proxy.url}/v1/messages", json=body) as response:
            assert response.status == 400 and "claude" in await response.text()


async def test_the_model_page_asks_models_for_whoever_may(tmp_path, http):
    top = {"demo": True, "remote-management": {"secret-key": "the-management-key"}}
    policy = {"model-page": {"permissions": ["model"]}}
    async with example_proxy(tmp_path, {"model-page": {}}, policy=policy, **top) as proxy:
        await proxy.proxy.management.pages.synced()
        async with http.get(f"{proxy.url}/v0/resource/plugins/model-page/status?model=demo-1") as answer:
            assert answer.status == 403 and "set public to allow it" in await answer.text()
        seen = {}
        for key in ("wrong-management-key", "the-management-key"):
            url, headers = f"{proxy.url}/v0/management/model-page", {"authorization": f"Bearer {key}"}
            asked = {"model": "demo-1", "prompt": "hi", "stream": True}
            async with http.post(url, json=asked, headers=headers) as answer:
                seen[key] = answer.status, await answer.text()
        assert seen["wrong-management-key"][0] == 401
        status, page = seen["the-management-key"]
        assert status == 200 and "<dt>closed</dt><dd><pre>explicitly" in page and "demo-1" in page
        # A model that is not there is the page's content, with its status.
        async with http.post(url, json={"model": "nobody"}, headers=headers) as answer:
            assert answer.status == 200 and "model_not_found" in await answer.text()


async def test_usage_is_added_up_per_model_and_credential_and_survives_a_restart(tmp_path, upstream, http):
    upstream.behave("bad", Behaviour(status=400))
    file = tmp_path / "plugin-data" / "usage-log" / "usage.jsonl"
    lines_after = []
    for _ in range(2):
        async with example_proxy(tmp_path, {"usage-log": {}}, **acme(upstream, "m", "bad")) as proxy:
            for model in ("m", "m", "bad"):
                await ask(http, proxy, model)
                await settled()
            lines_after.append(len(file.read_bytes().splitlines()))
    totals = {line["model"]: line for line in map(msgspec.json.decode, file.read_bytes().splitlines())}
    # Stopping leaves one line per pair, to which the next run appends.
    assert lines_after == [3, 2 + 3] and len(totals) == 2
    assert (totals["m"]["requests"], totals["m"].get("failed", 0)) == (4, 0)
    assert totals["m"]["input_tokens"] > 0 and totals["m"]["credential"].startswith("openai-compatib")
    assert (totals["bad"]["requests"], totals["bad"]["failed"]) == (2, 2)
