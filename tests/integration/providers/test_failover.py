"""Before the first byte another credential may serve the request; a request that nobody could serve is not repeated."""

import json
from typing import Any

import aiohttp
import pytest

from tests.support.fake_upstream import Behaviour, FakeUpstream
from tests.support.families import CLAUDE, GEMINI, OPENAI, TEXT, Family
from tests.support.ports import reserved_port
from tests.support.proxy import running_proxy
from tests.support.upstream_servers import ScriptedServer, ServerConnection

STREAM = pytest.mark.parametrize("stream", [False, True], ids=["plain", "stream"])
FILL_FIRST = {"routing": {"strategy": "fill-first"}}


def two_upstreams(family: Family, first: str, second: str) -> str:
    """A config in which `first` is asked before `second`."""
    entries = [*family.entries(first, ["first"], priority=9), *family.entries(second, ["second"])]
    if family.section == "openai-compatibility":
        entries[-1]["name"] = "other"
    return json.dumps({family.section: entries})


async def asked(client: aiohttp.ClientSession, url: str, family: Family, *, stream: bool) -> tuple[int, bytes]:
    path, body = family.request(stream=stream)
    async with client.post(url + path, data=body) as response:
        return response.status, await response.read()


@STREAM
@pytest.mark.parametrize("status", [401, 402, 403, 404, 408, 429, 500, 502, 503, 529])
async def test_another_credential_answers_when_the_first_is_refused(
    client: aiohttp.ClientSession, upstream: FakeUpstream, family: Family, status: int, stream: bool
) -> None:
    config = family.config(upstream.url, "k1", "k2", top=FILL_FIRST)
    upstream.behave("m1", Behaviour(status=status), Behaviour())
    async with running_proxy(config) as proxy:
        code, body = await asked(client, proxy.url, family, stream=stream)
    assert code == 200
    for word in TEXT.split():
        assert word.encode() in body
    keys = {sent.headers[name] for sent in upstream.requests for name in sent.headers if "key" in name.lower()} | {
        sent.headers.get("Authorization", "") for sent in upstream.requests
    }
    assert len(upstream.requests) == 2
    assert len(keys - {""}) == 2


@STREAM
@pytest.mark.parametrize("status", [400, 413, 422])
async def test_a_request_that_is_wrong_itself_is_not_tried_again(
    client: aiohttp.ClientSession, upstream: FakeUpstream, family: Family, status: int, stream: bool
) -> None:
    upstream.behave("m1", Behaviour(status=status), Behaviour())
    async with running_proxy(family.config(upstream.url, "k1", "k2")) as proxy:
        code, _ = await asked(client, proxy.url, family, stream=stream)
        assert code == status
        assert len(upstream.requests) == 1
        # Nor does the credential rest: the next request is served.
        assert (await asked(client, proxy.url, family, stream=stream))[0] == 200


@STREAM
async def test_another_upstream_answers_when_the_first_refuses_connections(
    client: aiohttp.ClientSession, upstream: FakeUpstream, family: Family, stream: bool
) -> None:
    with reserved_port() as port:
        async with running_proxy(two_upstreams(family, f"http://127.0.0.1:{port}", upstream.url)) as proxy:
            assert (await asked(client, proxy.url, family, stream=stream))[0] == 200


@STREAM
@pytest.mark.parametrize("sent", [b"", b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n"], ids=["no head", "head only"])
async def test_another_upstream_answers_when_the_first_is_cut_before_its_first_event(
    client: aiohttp.ClientSession, upstream: FakeUpstream, family: Family, stream: bool, sent: bytes
) -> None:
    cut: list[bytes] = []

    async def script(connection: ServerConnection) -> None:
        cut.append((await connection.request()).body)
        await connection.send(sent)
        connection.hang_up()

    async with (
        ScriptedServer(script) as server,
        running_proxy(two_upstreams(family, server.url, upstream.url)) as proxy,
    ):
        assert (await asked(client, proxy.url, family, stream=stream))[0] == 200
    assert len(cut) == 1
    assert len(upstream.requests) == 1


async def test_another_credential_answers_when_the_first_stream_ends_before_any_event(
    client: aiohttp.ClientSession, upstream: FakeUpstream, family: Family
) -> None:
    upstream.behave("m1", Behaviour(end_after_events=0), Behaviour())
    async with running_proxy(family.config(upstream.url, "k1", "k2")) as proxy:
        assert (await asked(client, proxy.url, family, stream=True))[0] == 200
    assert len(upstream.requests) == 2


async def test_another_credential_answers_when_the_first_event_is_an_error(
    client: aiohttp.ClientSession, upstream: FakeUpstream, family: Family
) -> None:
    upstream.behave("m1", Behaviour(error_after_events=0), Behaviour())
    async with running_proxy(family.config(upstream.url, "k1", "k2")) as proxy:
        code, body = await asked(client, proxy.url, family, stream=True)
    assert code == 200
    assert b"broken" not in body
    assert len(upstream.requests) == 2


async def test_after_the_first_event_nothing_is_tried_again(
    client: aiohttp.ClientSession, upstream: FakeUpstream, family: Family
) -> None:
    upstream.behave("m1", Behaviour(cut_after_events=1), Behaviour())
    async with running_proxy(family.config(upstream.url, "k1", "k2")) as proxy:
        code, body = await asked(client, proxy.url, family, stream=True)
    assert code == 200
    assert b"error" in body
    assert len(upstream.requests) == 1


async def test_when_all_fail_the_last_upstreams_own_error_is_the_answer(
    client: aiohttp.ClientSession, upstream: FakeUpstream, family: Family
) -> None:
    bodies = [{"error": {"message": f"number {number}"}} for number in (1, 2, 3)]
    upstream.behave("m1", *(Behaviour(status=503, error=body) for body in bodies))
    async with running_proxy(family.config(upstream.url, "k1", "k2", "k3")) as proxy:
        code, body = await asked(client, proxy.url, family, stream=False)
    assert (code, json.loads(body)) == (503, bodies[2])


@STREAM
async def test_an_upstream_that_quotes_the_key_it_refuses_does_not_show_it_to_the_client(
    client: aiohttp.ClientSession, upstream: FakeUpstream, family: Family, stream: bool
) -> None:
    words = b'{"error" : {"message":"bad key: sk-of-the-operator-17" }, "zz":1.50}'
    upstream.behave("m1", Behaviour(status=401, error=words))
    async with running_proxy(family.config(upstream.url, "sk-of-the-operator-17")) as proxy:
        code, body = await asked(client, proxy.url, family, stream=stream)
        shown = proxy.proxy.gateway.state.pool.book.all_states()
        assert "operator-17" not in str([[it.cause for it in states.values()] for _, states in shown])
    assert (code, body) == (401, words.replace(b"sk-of-the-operator-17", b"***"))


async def test_no_more_credentials_are_tried_than_the_operator_allows(
    client: aiohttp.ClientSession, upstream: FakeUpstream
) -> None:
    upstream.behave("m1", Behaviour(status=503))
    config = OPENAI.config(upstream.url, "k1", "k2", "k3", top={"max-retry-credentials": 2})
    async with running_proxy(config) as proxy:
        assert (await asked(client, proxy.url, OPENAI, stream=False))[0] == 503
    assert len(upstream.requests) == 2


async def test_a_429_reaches_the_client_verbatim_with_its_retry_after_when_nobody_else_is_left(
    client: aiohttp.ClientSession, upstream: FakeUpstream, family: Family
) -> None:
    words = b'{"error" : {"code":429,"message":"quota of the upstream" }, "zz":1.50}'
    upstream.behave("m1", Behaviour(status=429, error=words, headers={"Retry-After": "31"}))
    async with running_proxy(family.config(upstream.url)) as proxy:
        path, body = family.request()
        async with client.post(proxy.url + path, data=body) as response:
            assert (response.status, await response.read()) == (429, words)
            assert response.headers["Retry-After"] == "31"


@pytest.mark.parametrize("path", ["/v1/embeddings", "/v1/responses"])
async def test_an_endpoint_that_the_upstream_lacks_takes_the_model_from_nobody(
    client: aiohttp.ClientSession, upstream: FakeUpstream, path: str
) -> None:
    config = OPENAI.config(upstream.url, "k1", responses=True)
    upstream.behave("m1", Behaviour(status=404, error=b"404 page not found"), Behaviour())
    async with running_proxy(config) as proxy:
        async with client.post(proxy.url + path, json={"model": "m1", "input": "hi"}) as response:
            assert (response.status, (await response.json())["error"]["message"]) == (404, "404 page not found")
        assert (await asked(client, proxy.url, OPENAI, stream=False))[0] == 200


async def test_when_every_credential_rests_the_answer_is_429_model_cooldown_without_asking(
    client: aiohttp.ClientSession, upstream: FakeUpstream, family: Family
) -> None:
    limits = [Behaviour(status=429, headers={"Retry-After": seconds}) for seconds in ("40", "30")]
    upstream.behave("m1", *limits)
    async with running_proxy(family.config(upstream.url, "k1", "k2")) as proxy:
        await asked(client, proxy.url, family, stream=False)
        path, body = family.request(stream=True)
        async with client.post(proxy.url + path, data=body) as response:
            assert response.status == 429
            assert 0 < int(response.headers["Retry-After"]) <= 30
            error: Any = (await response.json())["error"]
    assert len(upstream.requests) == 2
    assert "cooling down" in error["message"]
    if family.name in ("openai", "responses"):
        assert (error["code"], error["model"]) == ("model_cooldown", "m1")
        assert 0 < error["reset_seconds"] <= 30
    elif family is CLAUDE:
        assert error["type"] == "rate_limit_error"
    else:
        assert (error["code"], error["status"]) == (429, "RESOURCE_EXHAUSTED")


async def test_a_rest_is_of_the_model_that_failed_and_of_no_other(
    client: aiohttp.ClientSession, upstream: FakeUpstream
) -> None:
    upstream.behave("m1", Behaviour(status=429, headers={"Retry-After": "40"}))
    async with running_proxy(OPENAI.config(upstream.url, models=[{"name": "m1"}, {"name": "m2"}])) as proxy:
        for _ in range(2):
            assert (await asked(client, proxy.url, OPENAI, stream=False))[0] == 429
        path, body = OPENAI.request(model="m2")
        async with client.post(proxy.url + path, data=body) as response:
            assert response.status == 200
    assert [sent.model for sent in upstream.requests] == ["m1", "m2"]


async def test_googles_retry_info_is_the_rest_and_the_clients_retry_after(
    client: aiohttp.ClientSession, upstream: FakeUpstream
) -> None:
    info = {"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": "33.2s"}
    error = {"error": {"code": 429, "message": "quota", "status": "RESOURCE_EXHAUSTED", "details": [info]}}
    upstream.behave("m1", Behaviour(status=429, error=error))
    async with running_proxy(GEMINI.config(upstream.url)) as proxy:
        path, body = GEMINI.request()
        async with client.post(proxy.url + path, data=body) as response:
            assert (response.status, await response.json()) == (429, error)
            assert response.headers["Retry-After"] == "34"
        async with client.post(proxy.url + path, data=body) as response:
            assert 10 <= int(response.headers["Retry-After"]) <= 34
    assert len(upstream.requests) == 1


async def test_cooling_can_be_switched_off(client: aiohttp.ClientSession, upstream: FakeUpstream) -> None:
    upstream.behave("m1", Behaviour(status=429, headers={"Retry-After": "40"}))
    async with running_proxy(OPENAI.config(upstream.url, top={"disable-cooling": True})) as proxy:
        for _ in range(3):
            assert (await asked(client, proxy.url, OPENAI, stream=False))[0] == 429
    assert len(upstream.requests) == 3


async def test_a_stream_is_opened_again_when_the_operator_allows_bootstrap_retries(
    client: aiohttp.ClientSession, upstream: FakeUpstream
) -> None:
    upstream.behave("m1", Behaviour(status=503), Behaviour())
    top = {"streaming": {"bootstrap-retries": 1}, "disable-cooling": True}
    async with running_proxy(OPENAI.config(upstream.url, top=top)) as proxy:
        assert (await asked(client, proxy.url, OPENAI, stream=True))[0] == 200
    assert len(upstream.requests) == 2
