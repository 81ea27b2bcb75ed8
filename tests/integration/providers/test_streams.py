"""What a client sees of a stream that does not go as planned: always one end, in its own protocol."""

import asyncio
import json
from typing import Any

import aiohttp
import pytest

from tests.support.fake_upstream import Behaviour, FakeUpstream
from tests.support.families import CLAUDE, GEMINI, OPENAI, RESPONSES, Family
from tests.support.proxy import running_proxy
from tests.support.upstream_servers import ScriptedServer, ServerConnection

ENDS = {"openai": "[DONE]", "claude": "message_stop", "responses": "response.completed"}


def events_of(body: bytes) -> list[tuple[str, Any]]:
    """Name and document (or text) of each event; comments and blank lines left out."""
    found = []
    for block in body.decode().replace("\r\n", "\n").split("\n\n"):
        lines = [line for line in block.split("\n") if line and not line.startswith(":")]
        if not lines:
            continue
        name = next((line[7:] for line in lines if line.startswith("event: ")), "")
        data = "\n".join(line[6:] for line in lines if line.startswith("data: "))
        found.append((name, data if data == "[DONE]" else json.loads(data)))
    return found


def is_end(family: Family, event: tuple[str, Any]) -> bool:
    """Whether this event tells the client that the stream is over, well or not."""
    name, document = event
    if document == "[DONE]":
        return True
    kind = name or document.get("type", "")
    return "error" in document or kind in ("error", "message_stop", "response.completed", "response.failed")


def check_error(family: Family, event: tuple[str, Any], *, status: int, kind: str = "") -> None:
    """The family's own in-band error."""
    name, document = event
    if family is OPENAI:
        assert name == ""
        assert document["error"]["type"] == (kind or "server_error")
        assert document["error"]["message"]
    elif family is RESPONSES:
        assert (name, document["type"]) == ("error", "error")
        assert document["message"] and document["code"] and "error" not in document
        assert isinstance(document["sequence_number"], int)
    elif family is CLAUDE:
        assert (name, document["type"]) == ("error", "error")
        assert document["error"]["type"] == (kind or "api_error")
        assert document["error"]["message"]
    else:
        assert name == ""
        assert document["error"]["code"] == status
        assert document["error"]["status"] == "UNAVAILABLE"


async def read_in_two(
    client: aiohttp.ClientSession, url: str, family: Family, release: asyncio.Event
) -> tuple[bytes, bytes]:
    """The stream up to the end of its first event, then the rest, with `release` set in between."""
    path, body = family.request(stream=True)
    async with client.post(url + path, data=body) as response:
        assert response.status == 200
        first = await response.content.readuntil(b"\n\n")
        release.set()
        return first, await response.read()


@pytest.mark.parametrize("how", ["cut_after_events", "end_after_events"])
async def test_a_stream_cut_in_the_middle_ends_with_one_error_event_and_nothing_behind_it(
    client: aiohttp.ClientSession, upstream: FakeUpstream, family: Family, how: str
) -> None:
    release = asyncio.Event()
    upstream.behave("m1", Behaviour(**{how: 2, "release": release}))  # type: ignore[arg-type]
    async with running_proxy(family.config(upstream.url)) as proxy:
        first, rest = await read_in_two(client, proxy.url, family, release)
    events = events_of(first + rest)
    if family is GEMINI and how == "end_after_events":
        # Gemini has no end marker: its clients take the end of the answer for the end.
        assert len(events) == 2
        assert not any(is_end(family, event) for event in events)
        return
    assert [is_end(family, event) for event in events] == [False, False, True]
    check_error(family, events[-1], status=502)


async def test_a_stream_cut_inside_an_event_loses_that_event_and_ends_with_an_error(
    client: aiohttp.ClientSession, family: Family
) -> None:
    release = asyncio.Event()
    whole = {
        "openai": b'data: {"choices":[{"index":0,"delta":{"content":"a"}}]}\n\n',
        "responses": b'event: response.created\ndata: {"type":"response.created"}\n\n',
        "claude": b'event: message_start\ndata: {"type":"message_start","message":{}}\n\n',
        "gemini": b'data: {"candidates":[{"content":{"parts":[{"text":"a"}]}}]}\n\n',
    }[family.name]

    async def script(connection: ServerConnection) -> None:
        await connection.request()
        await connection.send(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n" + whole)
        await release.wait()
        await connection.send(whole[: len(whole) // 2])

    async with ScriptedServer(script) as server, running_proxy(family.config(server.url)) as proxy:
        first, rest = await read_in_two(client, proxy.url, family, release)
    assert first == whole
    (error,) = events_of(rest)
    check_error(family, error, status=502)


async def test_an_error_event_of_the_upstream_is_the_last_thing_the_client_gets(
    client: aiohttp.ClientSession, upstream: FakeUpstream, family: Family
) -> None:
    release = asyncio.Event()
    upstream.behave("m1", Behaviour(error_after_events=2, release=release))
    async with running_proxy(family.config(upstream.url)) as proxy:
        first, rest = await read_in_two(client, proxy.url, family, release)
    events = events_of(first + rest)
    assert [is_end(family, event) for event in events] == [False, False, True]
    check_error(family, events[-1], status=503, kind="overloaded_error" if family is CLAUDE else "")
    message = json.dumps(events[-1][1])
    assert "broken" in message


async def test_a_complete_stream_has_exactly_one_end(
    client: aiohttp.ClientSession, upstream: FakeUpstream, family: Family
) -> None:
    async with running_proxy(family.config(upstream.url)) as proxy:
        path, body = family.request(stream=True)
        async with client.post(proxy.url + path, data=body) as response:
            events = events_of(await response.read())
    ends = [event for event in events if is_end(family, event)]
    assert len(ends) == (0 if family is GEMINI else 1)
    if ends:
        assert ends == [events[-1]]
        name, document = ends[0]
        assert (name or document) == ENDS[family.name]


async def test_an_upstream_that_forgets_done_after_its_finish_reason_is_completed(
    client: aiohttp.ClientSession, upstream: FakeUpstream
) -> None:
    upstream.behave("m1", Behaviour(text="one", end_after_events=3))
    async with running_proxy(OPENAI.config(upstream.url)) as proxy:
        path, body = OPENAI.request(stream=True)
        async with client.post(proxy.url + path, data=body) as response:
            events = events_of(await response.read())
    assert events[-1] == ("", "[DONE]")
    assert events[-2][1]["choices"][0]["finish_reason"] == "stop"


async def test_what_comes_behind_the_end_is_not_the_clients(client: aiohttp.ClientSession) -> None:
    stream = b'data: {"choices":[{"index":0,"delta":{"content":"a"}}]}\n\ndata: [DONE]\n\n'

    async def script(connection: ServerConnection) -> None:
        await connection.request()
        head = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n"
        await connection.send(head + stream + b'data: {"late":1}\n\ndata: [DONE]\n\n')

    async with ScriptedServer(script) as server, running_proxy(OPENAI.config(server.url)) as proxy:
        path, body = OPENAI.request(stream=True)
        async with client.post(proxy.url + path, data=body) as response:
            assert await response.read() == stream


async def test_an_html_page_instead_of_a_stream_is_an_error_status(
    client: aiohttp.ClientSession, family: Family
) -> None:
    async def script(connection: ServerConnection) -> None:
        await connection.request()
        await connection.send(b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\n\r\n<html>please log in</html>")

    async with ScriptedServer(script) as server, running_proxy(family.config(server.url)) as proxy:
        path, body = family.request(stream=True)
        async with client.post(proxy.url + path, data=body) as response:
            assert response.status == 502
            assert "error" in await response.json()


async def test_a_whole_json_error_instead_of_a_stream_is_an_error_status(
    client: aiohttp.ClientSession, upstream: FakeUpstream
) -> None:
    async def script(connection: ServerConnection) -> None:
        await connection.request()
        body = b'{"error":{"message":"quota of the upstream","type":"rate_limit_error"}}'
        await connection.send(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n\r\n" + body)

    async with ScriptedServer(script) as server, running_proxy(OPENAI.config(server.url)) as proxy:
        path, body = OPENAI.request(stream=True)
        async with client.post(proxy.url + path, data=body) as response:
            assert response.status >= 400
            assert "error" in await response.json()


async def test_keep_alives_bridge_the_silence_of_the_upstream_in_the_form_each_family_can_take(
    client: aiohttp.ClientSession, upstream: FakeUpstream, family: Family
) -> None:
    upstream.behave("m1", Behaviour(hang_after_events=1))
    config = family.config(upstream.url, top={"streaming": {"keepalive-seconds": 1}})
    async with running_proxy(config) as proxy:
        path, body = family.request(stream=True)
        async with client.post(proxy.url + path, data=body) as response:
            await response.content.readuntil(b"\n\n")
            beat = await response.content.readline()
    assert beat == (b"\n" if family is GEMINI else b": keep-alive\n")


async def test_a_whole_answer_that_takes_long_is_preceded_by_white_space(
    client: aiohttp.ClientSession, family: Family
) -> None:
    asked = asyncio.Event()
    go_on = asyncio.Event()

    async def script(connection: ServerConnection) -> None:
        await connection.request()
        asked.set()
        await go_on.wait()
        await connection.send(b"HTTP/1.1 200 OK\r\nContent-Length: 8\r\n\r\n" + b'{"a": 1}')
        await connection.closed_by_peer()

    config = family.config
    async with ScriptedServer(script) as server:
        async with running_proxy(config(server.url, top={"nonstream-keepalive-interval": 1})) as proxy:
            path, body = family.request()
            async with client.post(proxy.url + path, data=body) as response:
                assert await response.content.readexactly(1) == b"\n"
                go_on.set()
                rest = await response.read()
    assert response.headers["Content-Type"] == "application/json"
    assert json.loads(rest) == {"a": 1}


@pytest.mark.parametrize("stream", [False, True], ids=["plain", "stream"])
async def test_a_client_that_hangs_up_before_the_answer_cancels_the_upstream(
    client: aiohttp.ClientSession, upstream: FakeUpstream, family: Family, stream: bool
) -> None:
    upstream.behave("m1", Behaviour(hang=True))
    async with running_proxy(family.config(upstream.url)) as proxy:
        path, body = family.request(stream=stream)
        asking = asyncio.create_task(client.post(proxy.url + path, data=body).__aenter__())
        request = await upstream.request()
        asking.cancel()
        async with asyncio.timeout(10):
            await request.client_left.wait()
        with pytest.raises(asyncio.CancelledError):
            await asking


async def test_a_client_that_hangs_up_in_mid_stream_cancels_the_upstream(
    client: aiohttp.ClientSession, upstream: FakeUpstream, family: Family
) -> None:
    upstream.behave("m1", Behaviour(hang_after_events=1))
    async with running_proxy(family.config(upstream.url)) as proxy:
        path, body = family.request(stream=True)
        async with client.post(proxy.url + path, data=body) as response:
            await response.content.readuntil(b"\n\n")
            response.close()
        async with asyncio.timeout(10):
            await (await upstream.request()).client_left.wait()


async def test_a_client_that_left_is_no_fault_of_the_credential(
    client: aiohttp.ClientSession, upstream: FakeUpstream
) -> None:
    upstream.behave("m1", Behaviour(hang_after_events=1), Behaviour())
    async with running_proxy(OPENAI.config(upstream.url)) as proxy:
        path, body = OPENAI.request(stream=True)
        async with client.post(proxy.url + path, data=body) as response:
            await response.content.readuntil(b"\n\n")
            response.close()
        async with asyncio.timeout(10):
            await (await upstream.request()).client_left.wait()
        async with client.post(proxy.url + path, data=body) as response:
            assert response.status == 200
            assert b"[DONE]" in await response.read()


async def test_a_silent_upstream_is_a_504_after_the_first_byte_timeout(
    client: aiohttp.ClientSession, upstream: FakeUpstream, family: Family
) -> None:
    upstream.behave("m1", Behaviour(hang=True))
    config = family.config(upstream.url, top={"timeouts": {"first-byte": "300ms"}})
    async with running_proxy(config) as proxy:
        path, body = family.request()
        async with client.post(proxy.url + path, data=body) as response:
            assert response.status == 504
    async with asyncio.timeout(10):
        await (await upstream.request()).client_left.wait()


async def test_a_stream_that_falls_silent_ends_with_an_error_event_after_the_idle_timeout(
    client: aiohttp.ClientSession, upstream: FakeUpstream, family: Family
) -> None:
    upstream.behave("m1", Behaviour(hang_after_events=1))
    config = family.config(upstream.url, top={"timeouts": {"idle": "300ms"}})
    async with running_proxy(config) as proxy:
        path, body = family.request(stream=True)
        async with client.post(proxy.url + path, data=body) as response:
            events = events_of(await response.read())
    assert [is_end(family, event) for event in events] == [False, True]
