"""The one reader of credential files."""

from typing import Any

import pytest

from host.config.model import CompatKey, CompatProvider, Config, ModelEntry
from host.credentials.parse import InvalidCredential, parse_settings, record_of_file
from host.credentials.records import AliasRule, Credential, CredentialModel, HandleMint
from host.credentials.secret import Secret
from host.credentials.values import access_token_of, rfc3339, time_like

DIRECTORY = "/auths"


def parsed(document: dict[str, Any], name: str = "a.json", **config: Any) -> Credential:
    settings = parse_settings(Config(**config), DIRECTORY)
    return record_of_file({"type": "acme"} | document, f"{DIRECTORY}/{name}", settings, HandleMint(), now_s=100.0)


def test_A14_the_index_of_a_file_is_made_of_its_type_and_path():
    found = parsed({"type": "codex"}, "codex-a.json")
    assert (found.auth_index, found.id, found.provider) == ("2289d3efc0e299e7", "codex-a.json", "codex")


def test_A16_exclusions_are_folded_sorted_and_have_a_digest():
    found = parsed({"excluded_models": ["b-model", "A-Model"]})
    assert found.excluded_models == ("a-model", "b-model")
    assert found.attributes["excluded_models"] == "a-model,b-model"
    assert found.attributes["excluded_models_hash"] == (
        "ba841a4e3d2f87e162d6bc3e968659b550af0cbd6a1cfd5e4a7bd41c1b223334"
    )


def test_the_exclusions_of_the_provider_are_added():
    found = parsed({"excluded_models": ["b"]}, oauth_excluded_models={"ACME": ["A", "b"], "other": ["c"]})
    assert found.excluded_models == ("a", "b")


@pytest.mark.parametrize(("written", "expected"), [("7", 7), (7, 7), ("1x", 0), (True, 0), (-2, -2)])
def test_A17_a_priority_is_a_whole_number_or_none(written, expected):
    found = parsed({"priority": written})
    assert found.priority == expected
    assert found.attributes.get("priority") == (str(expected) if expected else None)


@pytest.mark.parametrize(("written", "expected"), [(" /team/ ", "team"), ("a/b", ""), (5, "")])
def test_A18_a_prefix_is_one_path_segment(written, expected):
    assert parsed({"prefix": written}).prefix == expected


def test_A19_headers_are_texts_with_a_name_and_a_value():
    assert parsed({"headers": {" X-A ": " v ", "X-B": "", "X-C": 5}}).headers == (("x-a", "v"),)


@pytest.mark.parametrize(
    ("written", "expected"), [("true", True), (1, True), (False, False), ("f", False), ("maybe", None), (None, None)]
)
def test_A21_disable_cooling_switches_on_off_or_leaves_it_to_the_configuration(written, expected):
    assert parsed({"disable_cooling": written}).disable_cooling is expected
    assert parsed({"disable-cooling": written}).disable_cooling is expected


@pytest.mark.parametrize(("written", "expected"), [(-3, None), ("2", 2), (0, 0), ("x", None)])
def test_A22_a_negative_request_retry_leaves_it_to_the_configuration(written, expected):
    assert parsed({"request_retry": written}).request_retry == expected


@pytest.mark.parametrize("written", ["", "DIRECT", "none", "socks5h://h:1"])
def test_A24_a_proxy_that_can_be_used_is_kept_as_written(written):
    assert parsed({"proxy_url": written}).proxy_url == written


@pytest.mark.parametrize("written", ["ftp://h", "http://"])
def test_A24_a_proxy_that_cannot_be_used_makes_the_file_unusable_and_never_a_direct_connection(written):
    with pytest.raises(InvalidCredential, match="proxy_url"):
        parsed({"proxy_url": written})


@pytest.mark.parametrize("written", ["127.0.0.1:8080/v1", "ftp://a.test", "https://", "https://a.test:port", "/v1"])
def test_a_file_whose_upstream_no_request_could_reach_is_unusable(written):
    with pytest.raises(InvalidCredential, match="base_url"):
        parsed({"base_url": written})


@pytest.mark.parametrize(
    ("document", "expected"),
    [
        ({"access_token": " "}, ""),
        ({"token": {"access_token": "x"}}, "x"),
        ({"access_token": "top", "token": {"access_token": "x"}}, "top"),
        ({"access_token": 123}, ""),
    ],
)
def test_B21_where_an_access_token_is_found(document, expected):
    assert access_token_of(document) == expected


@pytest.mark.parametrize(
    ("provider", "document", "expected"),
    [
        ("claude", {"access_token": "t"}, (Secret("t"), "bearer", "authorization", "oauth")),
        ("claude", {"api_key": "k"}, (Secret("k"), "header", "x-api-key", "apikey")),
        ("claude", {"api-key": "k", "access_token": "t"}, (Secret("k"), "header", "x-api-key", "apikey")),
        ("gemini", {"api_key": "k"}, (Secret("k"), "header", "x-goog-api-key", "apikey")),
        ("gemini", {"token": {"access_token": "t"}}, (Secret("t"), "bearer", "authorization", "oauth")),
        ("acme", {"api_key": "k"}, (Secret("k"), "bearer", "authorization", "apikey")),
        ("acme", {}, (None, "none", "", "")),
    ],
)
def test_the_secret_of_a_file_goes_where_its_kind_and_provider_say(provider, document, expected):
    found = parsed({"type": provider, **document})
    assert (found.secret, found.secret_place, found.secret_name, found.auth_kind) == expected


def test_a_canonical_member_wins_over_its_dashed_twin_and_the_rest_of_the_file_is_kept():
    found = parsed({"excluded-models": ["old"], "excluded_models": ["new"], "base-url": "https://b.test/", "own": 1})
    assert (found.excluded_models, found.base_url) == (("new",), "https://b.test")
    kept = found.metadata.reveal()
    assert kept["own"] == 1
    assert "excluded-models" not in kept


@pytest.mark.parametrize(
    ("document", "label"),
    [
        ({"label": "L", "email": "e@x"}, "L"),
        ({"email": "e@x", "project_id": "p"}, "e@x"),
        ({"project_id": "p"}, "p"),
        ({}, "acme"),
    ],
)
def test_a_label_is_its_own_else_the_account_else_the_provider(document, label):
    assert parsed(document).label == label


def test_a_file_without_a_type_is_listed_with_the_reason_and_belongs_to_nobody():
    found = parsed({"type": " "})
    assert (found.provider, found.status, found.status_message) == ("unknown", "error", "the file has no `type`")


def test_a_type_is_taken_as_it_is_and_never_renamed():
    assert parsed({"type": " Gemini "}).provider == "gemini"


@pytest.mark.parametrize("written", [1.5, "2", 1_000_001, True])
def test_a_weight_that_is_no_whole_number_up_to_a_million_makes_the_file_unusable(written):
    with pytest.raises(InvalidCredential, match="weight"):
        parsed({"weight": written})
    assert parsed({"weight": 0}).weight == 0


def test_a_file_of_a_configured_compatible_provider_takes_over_what_the_provider_says():
    provider = CompatProvider(
        name="Acme",
        base_url="https://acme.test/v1",
        headers={"X-Org": "o", "X-Team": "t"},
        models=[ModelEntry(name="m", alias="big")],
        responses=True,
        api_key_entries=[CompatKey(api_key="k")],
    )
    found = parsed(
        {"type": "openai-compatible-acme", "access_token": "t", "headers": {"X-Team": "mine"}},
        openai_compatibility=[provider],
    )
    assert (found.base_url, found.attributes["compat_name"]) == ("https://acme.test/v1", "Acme")
    assert found.headers == (("x-org", "o"), ("x-team", "mine"))
    assert found.models == (CredentialModel(client="big", upstream="m"),)
    assert found.unsupported_formats == frozenset()


def test_aliases_are_trimmed_and_each_alias_counts_once():
    rules = [
        {"name": " m ", "alias": "x", "fork": True},
        {"name": "n", "alias": "X"},
        {"name": "same", "alias": "SAME"},
        {"name": "", "alias": "y"},
        "no rule",
    ]
    assert parsed({"model-aliases": rules}).model_aliases == (AliasRule(name="m", alias="x", fork=True),)


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        ("2026-01-02T03:04:05Z", 1767323045.0),
        ("2026-01-02T03:04:05.5+00:00", 1767323045.5),
        ("2026-01-02 03:04:05", 1767323045.0),
        ("2026-01-02 03:04", 1767323040.0),
        (1767323045, 1767323045.0),
        ("1767323045", 1767323045.0),
        (1767323045000, 1767323045.0),
        (0, None),
        (-5, None),
        ("2026-01-02t03:04:05z", 1767323045.0),
        ("0001-01-01T00:00:00Z", None),
        ("0002-01-01T00:00:00Z", None),
        ("9999-12-31T23:59:59-23:00", None),
        ("soon", None),
        (True, None),
    ],
)
def test_a_time_is_read_in_every_way_that_programs_write_one(written, expected):
    assert time_like(written) == expected


@pytest.mark.parametrize(("moment_s", "written"), [(4e11, "9999-12-31T23:59:59Z"), (-5.0, "1970-01-01T00:00:00Z")])
def test_a_time_that_cannot_be_written_never_breaks_a_listing(moment_s, written):
    assert rfc3339(moment_s) == written


def test_expiry_and_last_refresh_are_also_found_in_the_nested_token():
    found = parsed({"token": {"expiry": 2_000_000_000}, "lastRefresh": 1_900_000_000, "refresh_interval": "15m"})
    assert (found.expires_at_s, found.last_refreshed_at_s, found.refresh_interval_s) == (2e9, 1.9e9, 900.0)


def test_nothing_of_a_file_is_shown_by_accident():
    found = parsed({"api_key": "sk-hidden", "refresh_token": "rt-hidden", "headers": {"x": "hidden-too"}})
    assert "hidden" not in repr(found)
    assert "api_key" in repr(found)


@pytest.mark.parametrize("dash", ["_", "-"])
def test_12_5_items_of_models_say_what_lists_show_with_underscores_or_dashes(dash):
    item = {
        "name": " up ",
        "alias": "fast",
        f"display{dash}name": " Fast ",
        f"max{dash}context{dash}length": "128000",
        f"input{dash}modalities": ["Text", "IMAGE", "text", ""],
        f"output{dash}modalities": "text",
        f"force{dash}mapping": "true",
        "thinking": {"levels": ["low"]},
    }
    odd = {"name": "odd", f"max{dash}context{dash}length": -5, "thinking": 7, f"force{dash}mapping": "maybe"}
    assert parsed({"models": [item, odd, "plain", {"alias": "nameless"}]}).models == (
        CredentialModel(
            client="fast",
            upstream="up",
            display_name="Fast",
            max_context_length=128000,
            input_modalities=("text", "image"),
            force_mapping=True,
            thinking={"levels": ["low"]},
        ),
        CredentialModel(client="odd", upstream="odd"),
        CredentialModel(client="plain", upstream="plain"),
    )
