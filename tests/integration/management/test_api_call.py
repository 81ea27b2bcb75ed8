"""Requests of the operator's choice, made by the proxy: off by default, and tokens stay with their upstream."""

from pathlib import Path
from typing import Any

from tests.support.fake_upstream import running_upstream
from tests.support.management import managed_proxy

SECRET = "sk-upstream-secret-1"


async def test_api_call_is_off_until_the_operator_switches_it_on(directory: Path) -> None:
    async with managed_proxy(directory) as managed:
        answer = await managed.api.call("POST", "/api-call", json={"method": "GET", "url": "http://127.0.0.1:1/"})
        assert answer.error == (403, "api_call_disabled")


async def test_a_token_goes_to_its_own_upstream_only_and_never_comes_back(directory: Path) -> None:
    async with running_upstream() as upstream:
        provider = {"name": "acme", "base-url": f"{upstream.url}/v1", "api-key-entries": [{"api-key": SECRET}]}
        fields: dict[str, Any] = {"openai_compatibility": [provider], "remote": {"api-call": True}}
        async with managed_proxy(directory, **fields) as managed:
            index = managed.running.proxy.credentials.credentials[0].auth_index
            header = {"Authorization": "Bearer $TOKEN$", "X-Other": "1"}

            async def called(**more: Any) -> Any:
                body = {"auth_index": index, "method": "post", "url": f"{upstream.url}/v1/chat/completions", **more}
                answer = await managed.api.call("POST", "/api-call", json={"header": header, **body})
                assert SECRET.encode() not in answer.body
                return answer.json if answer.status == 200 else answer.error

            data = '{"model": "m", "messages": [{"role": "user", "content": "hi"}]}'
            made = await called(data=data)
            assert made["status_code"] == 200 and "Hello from upstream" in made["body"]
            assert upstream.requests[-1].headers["Authorization"] == f"Bearer {SECRET}"
            await called(data=data, auth_index="0" * 16)
            assert upstream.requests[-1].headers["Authorization"] == "Bearer $TOKEN$"
            elsewhere = upstream.url.replace("127.0.0.1", "localhost")
            sent = len(upstream.requests)
            assert await called(url=elsewhere) == (403, "host_not_bound")
            assert await called(proxy_url="http://127.0.0.1:9") == (403, "host_not_bound")
            assert len(upstream.requests) == sent
            for more, expected in (
                ({"method": ""}, (400, "missing method")),
                ({"url": ""}, (400, "missing url")),
                ({"header": {}, "url": "nonsense"}, (400, "invalid url")),
                ({"header": {}, "proxy_url": "ftp://x"}, (400, "invalid proxy_url")),
                ({"header": {"a": 1}}, (400, "invalid body")),
                ({"header": {}, "url": "http://127.0.0.1:1/"}, (502, "request failed")),
            ):
                assert await called(**more) == expected, more
