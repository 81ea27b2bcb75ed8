"""Who may come in, through the whole proxy: real keys, real refusals, nothing scripted."""

from collections.abc import AsyncIterator

import aiohttp
import pytest

from tests.support.proxy import RunningProxy, running_proxy

KEYS = "api-keys: [k1-operator-made, {key: k2-operator-made, name: second}]\n"


@pytest.fixture
async def keyed() -> AsyncIterator[RunningProxy]:
    async with running_proxy(KEYS) as proxy:
        yield proxy


@pytest.fixture
async def anonymous() -> AsyncIterator[RunningProxy]:
    async with running_proxy("") as proxy:
        yield proxy


ATTEMPTS = [
    ("AU-02", {"Authorization": "Bearer k1-operator-made"}, "", 200),
    ("AU-03", {"Authorization": "bearer    k1-operator-made"}, "", 200),
    ("AU-04", {"Authorization": "k1-operator-made"}, "", 200),
    ("AU-05", {"Authorization": "Basic k1-operator-made"}, "", 401),
    ("AU-07-key", {}, "?key=k1-operator-made", 200),
    ("AU-07-token", {}, "?auth_token=k2-operator-made", 200),
    ("AU-08", {"X-Goog-Api-Key": "k1-operator-made"}, "", 200),
    ("one-of-two", {"Authorization": "Bearer wrong", "X-Api-Key": "k2-operator-made"}, "", 200),
    ("AU-09", {"Authorization": "", "X-Api-Key": "  "}, "?key=", 401),
    ("wrong", {"X-Api-Key": "k1-operator-made-not"}, "", 401),
]


@pytest.mark.parametrize(
    ("headers", "query", "status"), [row[1:] for row in ATTEMPTS], ids=[row[0] for row in ATTEMPTS]
)
@pytest.mark.parametrize("path", ["/v1/models", "/v1beta/models"])
async def test_a_key_from_any_source_opens_every_route(
    keyed: RunningProxy, client: aiohttp.ClientSession, path: str, headers: dict[str, str], query: str, status: int
) -> None:
    async with client.get(keyed.url + path + query, headers=headers) as response:
        assert response.status == status
        assert response.headers["X-Request-Id"]
        if status == 401:
            assert isinstance((await response.json())["error"], dict)


async def test_a_refused_client_is_not_asked_for_its_body(keyed: RunningProxy, client: aiohttp.ClientSession) -> None:
    headers = {"Expect": "100-continue"}
    async with client.post(f"{keyed.url}/v1/messages", data=b"{}", headers=headers, expect100=False) as response:
        assert response.status == 401
        assert (await response.json())["type"] == "error"


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 200),
        ({"Host": "localhost:8317"}, 200),
        ({"Origin": "http://localhost:3000"}, 200),
        ({"Host": "rebound.example"}, 403),
        ({"Origin": "https://page.example"}, 403),
        ({"Origin": "null"}, 403),
    ],
)
async def test_without_keys_only_this_machine_and_no_web_page_is_served(
    anonymous: RunningProxy, client: aiohttp.ClientSession, headers: dict[str, str], status: int
) -> None:
    for path in ("/v1/models", "/metrics"):
        async with client.get(anonymous.url + path, headers=headers) as response:
            assert response.status == status, path


async def test_metrics_need_a_key_as_soon_as_a_web_page_asks(
    keyed: RunningProxy, client: aiohttp.ClientSession
) -> None:
    page = {"Origin": "https://page.example"}
    async with client.get(f"{keyed.url}/metrics", headers=page) as response:
        assert response.status == 401
    async with client.get(f"{keyed.url}/metrics", headers={**page, "X-Api-Key": "k2-operator-made"}) as response:
        assert response.status == 200
    async with client.get(f"{keyed.url}/metrics") as response:
        assert 'caller="second"' in await response.text()
