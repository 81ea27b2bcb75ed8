"""The decision trace over HTTP."""

import json
from pathlib import Path
from typing import Any

from tests.support.management import Api, managed_proxy
from tests.support.proxy import run_command

ROUTER = """
class P(Plugin):
    async def model_route(self, request, ctx):
        if request.requested_model.startswith("to-echo"):
            return ModelRouteResponse(target_kind="executor", target="echo", reason="asked for it")
        return None

    async def request_intercept_before(self, request, ctx):
        if request.requested_model == "to-echo-badly":
            raise PluginError("key sk-abcdefghijklmnop is no good", http_status=418)
        if request.requested_model == "to-nowhere":
            return RequestInterceptResponse(terminate=Termination(status=451))
        return None
"""


async def chat(api: Api, model: str) -> tuple[int, str]:
    body = {"model": model, "messages": [{"role": "user", "content": "hi"}]}
    answer = await api.call("POST", "/v1/chat/completions", below="", json=body, headers={})
    return answer.status, answer.headers["X-Request-Id"]


async def test_requests_are_listed_found_and_explained(directory: Path) -> None:
    async with managed_proxy(directory, {"router": ROUTER}, demo=True) as managed:
        api = managed.api
        asked = {model: await chat(api, model) for model in ("to-echo-1", "to-echo-badly", "to-nowhere", "unknown")}
        assert [status for status, _ in asked.values()] == [200, 200, 451, 400]

        async def found(query: str) -> list[str]:
            listed: list[dict[str, Any]] = (await api.get(f"/requests?{query}")).json["requests"]
            return [request["model"] for request in listed if not request["parent_request_id"]]

        assert await found("") == ["unknown", "to-nowhere", "to-echo-badly", "to-echo-1"]
        assert await found("limit=2") == ["unknown", "to-nowhere"]
        assert await found("model=to-echo-1") == ["to-echo-1"]
        assert await found("status=451") == ["to-nowhere"]
        assert await found("status=4xx") == ["unknown", "to-nowhere"]
        assert await found("status=ok") == ["to-echo-badly", "to-echo-1"]
        assert await found("status=rejected") == ["to-nowhere"]
        assert await found("status=failed_open") == ["to-echo-badly"]
        assert await found("limit=0") == ["unknown"]
        assert (await api.get("/requests?limit=many")).error == (400, "invalid_query")

        [summary] = (await api.get("/requests?model=to-echo-badly")).json["requests"]
        assert (summary["routed_by"], summary["outcome"], summary["status"]) == ("router", "succeeded", 200)
        assert summary["failed_open"] == ["router/request.intercept_before"]

        _, request_id = asked["to-echo-badly"]
        explained = (await api.get(f"/requests/{request_id}")).json
        kinds = [decision["kind"] for decision in explained["decisions"]]
        assert (kinds[0], kinds[-1]) == ("request", "outcome") and "route" in kinds
        assert "abcdefghijklmnop" not in json.dumps(explained)
        done = await run_command(managed.file, "explain", request_id, "--json")
        assert json.loads(done.stdout) == explained
        assert (await api.get("/requests/nonsense")).error == (404, "request_not_found")


async def test_nothing_is_remembered_when_it_is_switched_off_and_it_can_be_switched_on_while_running(
    directory: Path,
) -> None:
    async with managed_proxy(directory, demo=True, decision_trace=False) as managed:
        status, request_id = await chat(managed.api, "echo")
        assert status == 200
        assert (await managed.api.get("/requests")).json == {"requests": []}
        assert (await managed.api.get(f"/requests/{request_id}")).status == 404
        managed.file.write_text(managed.file.read_text().replace("decision-trace: false", "decision-trace: true"))
        await managed.running.reload()
        await chat(managed.api, "echo")
        assert len((await managed.api.get("/requests")).json["requests"]) == 1
