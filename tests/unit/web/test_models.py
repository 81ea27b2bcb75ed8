"""Model lists in the shape of each client family."""

from typing import Any

import pytest

from pluginabi.payloads.common import ModelInfo, ThinkingSupport
from tests.support.web import Proxy

GPT = ModelInfo(id="gpt-x", created=1700000000, owned_by="openai", display_name="GPT X", context_length=1000)
CLAUDE = ModelInfo(id="claude-x", created=1771372800, owned_by="anthropic", display_name="Claude X")
PLAIN = ModelInfo(id="bare", created=0)
GEMINI = ModelInfo(id="gemini-x", name="models/gemini-x", owned_by="google", input_token_limit=9)


@pytest.fixture(autouse=True)
def listed(proxy: Proxy) -> None:
    proxy.gateway.models = [GPT, PLAIN, CLAUDE, GEMINI]


async def test_ML01_an_anthropic_client_gets_anthropics_list(proxy: Proxy) -> None:
    headers = {"Anthropic-Version": "2023-06-01", "User-Agent": "some-editor/1"}
    listing = (await proxy.get("/v1/models", headers=headers)).json()
    assert set(listing) == {"data", "has_more", "first_id", "last_id"}
    assert [entry["id"] for entry in listing["data"]] == ["claude-x", "gpt-x", "bare", "gemini-x"]
    assert (listing["first_id"], listing["last_id"], listing["has_more"]) == ("claude-x", "gemini-x", False)
    assert {"max_input_tokens", "max_tokens", "display_name"} <= set(listing["data"][0])


async def test_ML02_everybody_else_gets_openais_list_sorted_by_id(proxy: Proxy) -> None:
    listing = (await proxy.get("/v1/models", headers={"User-Agent": "Mozilla/5.0"})).json()
    assert listing["object"] == "list"
    assert [entry["id"] for entry in listing["data"]] == ["bare", "claude-x", "gemini-x", "gpt-x"]
    assert listing["data"][3] == {"id": "gpt-x", "object": "model", "created": 1700000000, "owned_by": "openai"}
    assert listing["data"][0] == {"id": "bare", "object": "model", "owned_by": ""}


@pytest.mark.parametrize("created", [1_700_000_000_000, 10**30, -(10**15)])
async def test_a_model_with_a_time_that_is_none_is_listed_without_one(proxy: Proxy, created: int) -> None:
    proxy.gateway.models.append(ModelInfo(id="odd", created=created))
    listing = (await proxy.get("/v1/models", headers={"Anthropic-Version": "2023-06-01"})).json()
    (odd,) = [entry for entry in listing["data"] if entry["id"] == "odd"]
    assert "created_at" not in odd


@pytest.mark.parametrize("version", ["1.2.3", ""], ids=["ML-04", "ML-05"])
async def test_a_client_version_asks_for_the_codex_catalogue(proxy: Proxy, version: str) -> None:
    headers = {"User-Agent": "claude-cli/1", "Anthropic-Version": "2023-06-01"}
    listing = (await proxy.get(f"/v1/models?client_version={version}", headers=headers)).json()
    assert set(listing) == {"models"}
    assert [entry["slug"] for entry in listing["models"]] == ["bare", "claude-x", "gemini-x", "gpt-x"]
    assert listing["models"][3]["context_window"] == listing["models"][3]["max_context_window"] == 1000


async def test_ML06_the_creation_time_is_RFC_3339(proxy: Proxy) -> None:
    listing = (await proxy.get("/v1/models", headers={"Anthropic-Version": "2023-06-01"})).json()
    assert listing["data"][0]["created_at"] == "2026-02-18T00:00:00Z"


async def test_ML07_a_model_without_limits_gets_the_defaults(proxy: Proxy) -> None:
    listing = (await proxy.get("/v1/models", headers={"User-Agent": "claude-cli/2.0"})).json()
    bare = next(entry for entry in listing["data"] if entry["id"] == "bare")
    assert bare == {
        "id": "bare",
        "object": "model",
        "owned_by": "",
        "type": "model",
        "display_name": "bare",
        "max_input_tokens": 200000,
        "max_tokens": 64000,
    }


@pytest.mark.parametrize("name", ["gemini-x", "models/gemini-x"])
async def test_ML09_one_gemini_model_is_found_with_and_without_its_prefix(proxy: Proxy, name: str) -> None:
    answer = await proxy.get(f"/v1beta/models/{name}")
    assert (answer.status, answer.json()["name"]) == (200, "models/gemini-x")


async def test_ML10_an_unknown_gemini_model_is_geminis_404(proxy: Proxy) -> None:
    answer = await proxy.get("/v1beta/models/nope")
    assert answer.status == 404
    assert answer.json() == {"error": {"code": 404, "message": "there is no model 'nope'", "status": "NOT_FOUND"}}


async def test_ML11_the_gemini_list_fills_in_what_is_missing(proxy: Proxy) -> None:
    listing = (await proxy.get("/v1beta/models")).json()
    assert set(listing) == {"models"}
    by_name: dict[str, Any] = {entry["name"]: entry for entry in listing["models"]}
    assert by_name["models/bare"] == {
        "name": "models/bare",
        "displayName": "bare",
        "description": "bare",
        "supportedGenerationMethods": ["generateContent"],
    }
    assert by_name["models/gemini-x"]["inputTokenLimit"] == 9
    assert (await proxy.get("/v1beta/models/bare")).json() == by_name["models/bare"]


async def test_one_model_is_shown_in_the_shape_of_the_client(proxy: Proxy) -> None:
    assert (await proxy.get("/v1/models/gpt-x")).json()["object"] == "model"
    claude = (await proxy.get("/v1/models/gpt-x", headers={"Anthropic-Version": "2023-06-01"})).json()
    assert claude["type"] == "model"
    missing = await proxy.get("/v1/models/nope")
    assert (missing.status, missing.json()["error"]["code"]) == (404, "model_not_found")
    assert missing.json()["error"]["param"] == "model"
    missing = await proxy.get("/v1/models/nope", headers={"Anthropic-Version": "2023-06-01"})
    assert missing.json()["error"]["type"] == "not_found_error"


LEVELS = [
    ("CC-02", ("none", "low", "unsupported", "high", "xhigh"), ["none", "low", "high", "xhigh"], "low"),
    ("CC-05", ("low", "medium", "high", "max"), ["low", "medium", "high", "max"], "medium"),
    ("CC-07", ("none", "high"), ["none", "high"], "high"),
    ("CC-07b", ("none",), ["none"], "none"),
    ("CC-08", ("unsupported",), ["low", "medium", "high"], "medium"),
]


@pytest.mark.parametrize(
    ("declared", "shown", "default"), [row[1:] for row in LEVELS], ids=[str(row[0]) for row in LEVELS]
)
async def test_the_codex_catalogue_shows_the_reasoning_levels_it_knows(
    proxy: Proxy, declared: tuple[str, ...], shown: list[str], default: str
) -> None:
    proxy.gateway.models = [ModelInfo(id="m", thinking=ThinkingSupport(levels=declared))]
    entry = (await proxy.get("/v1/models?client_version=1")).json()["models"][0]
    assert [level["effort"] for level in entry["supported_reasoning_levels"]] == shown
    assert entry["default_reasoning_level"] == default


async def test_CC04_the_codex_catalogue_spaces_priorities_and_hides_media_models(proxy: Proxy) -> None:
    proxy.gateway.models = [
        ModelInfo(id="b", display_name="Zeta"),
        ModelInfo(id="a-image", type="openai-image"),
        ModelInfo(id="c", supported_output_modalities=("VIDEO",)),
    ]
    entries = (await proxy.get("/v1/models?client_version=1")).json()["models"]
    assert [(entry["slug"], entry["priority"], entry["visibility"]) for entry in entries] == [
        ("a-image", 129, "hide"),
        ("c", 229, "hide"),
        ("b", 329, "list"),
    ]


async def test_googles_sdk_gets_geminis_list_under_every_version(proxy: Proxy) -> None:
    headers = {"X-Goog-Api-Client": "google-genai-sdk/3"}
    assert (await proxy.get("/v1/models", headers=headers)).json() == (await proxy.get("/v1beta/models")).json()
    assert (await proxy.get("/v1/models/bare", headers=headers)).json()["name"] == "models/bare"
    missing = await proxy.get("/v1/models/nope", headers=headers)
    assert missing.json()["error"]["status"] == "NOT_FOUND"
