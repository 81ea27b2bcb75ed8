"""A key file of a Google service account, as it is downloaded, can be used."""

import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import structlog

from tests.support.management import KEY, Answer, Managed, managed_proxy

ACCOUNT = {
    "type": "service_account",
    "project_id": "my-project",
    "client_email": "robot@my-project.iam.gserviceaccount.com",
    "private_key": "-----BEGIN PRIVATE KEY-----\nc2VjcmV0\n-----END PRIVATE KEY-----\n",
}

NOBODY = "no plugin that runs executes the provider 'vertex'"


@pytest.fixture
async def managed(directory: Path) -> AsyncIterator[Managed]:
    async with managed_proxy(directory) as it:
        yield it


def form(content: str, location: str = "") -> dict[str, object]:
    parts = [f'Content-Disposition: form-data; name="file"; filename="key.json"\r\n\r\n{content}']
    if location:
        parts.append(f'Content-Disposition: form-data; name="location"\r\n\r\n{location}')
    body = "".join(f"--b\r\n{part}\r\n" for part in parts) + "--b--\r\n"
    headers = {"Authorization": KEY, "Content-Type": "multipart/form-data; boundary=b"}
    return {"data": body.encode(), "headers": headers}


async def test_the_key_file_of_a_service_account_becomes_a_credential_file(managed: Managed) -> None:
    path, auths = "/vertex/import", managed.directory / "auths"
    stored = await managed.api.call("POST", path, **form(json.dumps(ACCOUNT), "Europe-West4"))
    name = "vertex-my-project-robot.json"
    assert stored.json == {
        "status": "ok",
        "name": name,
        "project_id": "my-project",
        "email": ACCOUNT["client_email"],
        "location": "europe-west4",
        "warning": NOBODY,
    }
    document = json.loads((auths / name).read_text())
    assert (document["type"], document["location"], document["service_account"]) == ("vertex", "europe-west4", ACCOUNT)
    (listed,) = (await managed.api.get("/auth-files")).json["files"]
    assert (listed["name"], listed["provider"], listed["email"]) == (name, "vertex", ACCOUNT["client_email"])
    assert (listed["status"], listed["status_message"]) == ("error", NOBODY)
    again = await managed.api.call("POST", path, **form(json.dumps(ACCOUNT)))
    assert again.json["location"] == "us-central1" and len([*auths.glob("*.json")]) == 1
    for content, says in (
        ("{", "not valid JSON"),
        ('{"type": "authorized_user"}', "no key of a service account"),
        (json.dumps({**ACCOUNT, "project_id": " "}), "`project_id` is missing"),
        (json.dumps({**ACCOUNT, "private_key": "c2VjcmV0"}), "no private key in PEM"),
    ):
        refused = await managed.api.call("POST", path, **form(content))
        assert refused.error == (400, "invalid service account") and says in refused.json["message"]
        assert b"c2VjcmV0" not in refused.body
    assert (await managed.api.call("POST", path, **form(json.dumps(ACCOUNT), "../x"))).error == (
        400,
        "invalid location",
    )
    assert (await managed.api.call("POST", path, json=ACCOUNT)).status == 400


VERTEX = """
class P(Plugin):
    async def plugin_register(self, request):
        return RegisterResponse(
            providers=["vertex"], executor=ExecutorRegistration(input_formats=["openai"], output_formats=["openai"])
        )

    async def executor_execute(self, request):
        return ExecutorResponse(body=Body.from_value({"model": request.model}))
"""


async def test_without_a_plugin_that_executes_the_provider_its_models_are_not_offered_and_the_log_says_why(
    directory: Path,
) -> None:
    key = {"api-key": "k", "base-url": "http://127.0.0.1:9", "models": [{"name": "v-up", "alias": "v-1"}]}
    async with managed_proxy(directory, {"vx": VERTEX}, vertex_api_key=[key]) as it:
        assert await offered(it) == ["v-1"]
        answer = await ask(it)
        assert (answer.status, answer.json) == (200, {"model": "v-up"})
        with structlog.testing.capture_logs() as lines:
            for enabled in (False, True, False):
                changed = await it.api.call("PATCH", "/plugins/vx/enabled", json={"enabled": enabled})
                assert changed.status == 200
                await it.settled()
        told = [line for line in lines if line["event"] == "provider.not_executed"]
        assert [(line["provider"], line["credentials"]) for line in told] == [("vertex", 1)] * 2
        assert await offered(it) == []
        refused = await ask(it)
        assert (refused.status, refused.json["error"]["code"]) == (500, "executor_not_found")
        assert NOBODY in refused.json["error"]["message"]


async def offered(managed: Managed) -> list[str]:
    return [model["id"] for model in (await managed.api.get("/v1/models", below="")).json["data"]]


async def ask(managed: Managed) -> Answer:
    return await managed.api.call("POST", "/v1/chat/completions", below="", json={"model": "v-1", "messages": []})
