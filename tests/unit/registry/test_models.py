"""Model names: resolution, aliases, prefixes, patterns, listing."""

import pytest

from host.registry.models import Catalogue, ModelRegistry, ModelRow, ModelSource, image_only_name, matches
from host.registry.suffix import split_suffix
from pluginabi.payloads.common import ModelInfo


def source(name: str, provider: str, *models: str, created: dict[str, int] | None = None, **fields) -> ModelSource:
    rows = tuple(
        ModelRow(client=model, upstreams=(model,), info=ModelInfo(id=model, created=(created or {}).get(model)))
        for model in models
    )
    return ModelSource(id=name, provider=provider, rows=rows, **fields)


def registry(sources, *, force_model_prefix: bool = False, sizes=None) -> ModelRegistry:
    return ModelRegistry(Catalogue(sources, force_model_prefix=force_model_prefix), sizes=sizes)


REGISTRY = registry(
    [
        source("g1", "gemini", "gemini-2.5-pro", "gemini-2.5-flash", created={"gemini-2.5-pro": 200}),
        source("o1", "openai", "gpt-5.2"),
        source("c1", "claude", "claude-sonnet-4-5"),
    ]
)


@pytest.mark.parametrize(
    ("vector", "model", "providers"),
    [
        ("MR-01", "gemini-2.5-pro(8192)", ("gemini",)),
        ("MR-02", "gpt-5.2(high)", ("openai",)),
        ("MR-04", "claude-sonnet-4-5(auto)", ("claude",)),
        ("MR-04", "gemini-2.5-flash(none)", ("gemini",)),
        ("MR-05", "unknown-model(8192)", ()),
        ("case", "GPT-5.2", ("openai",)),
    ],
)
def test_a_model_leads_to_its_providers_and_keeps_its_name(vector, model, providers):
    found = REGISTRY.resolve(model)
    assert (found.providers, found.model) == (providers, model)


def test_MR_06_auto_is_the_newest_model_and_keeps_the_suffix():
    assert REGISTRY.resolve("auto(high)").model == "gemini-2.5-pro(high)"
    assert REGISTRY.resolve("auto").base == "gemini-2.5-pro"


def test_MR_07_auto_in_an_empty_registry_stays_auto():
    found = registry([]).resolve("auto")
    assert (found.model, found.providers) == ("auto", ())


def test_a_full_name_with_suffix_may_be_registered_as_it_is():
    found = registry([source("x", "p", "odd(name)")]).resolve("odd(name)")
    assert (found.base, found.suffix, found.providers) == ("odd(name)", None, ("p",))


@pytest.mark.parametrize(
    ("model", "expected"),
    [("x(high", ("x(high", None)), ("x()", ("x", "")), ("a(b)(c)", ("a(b)", "c")), ("(x)", ("", "x"))],
)
def test_MR_10_the_suffix_is_what_the_last_brackets_hold(model, expected):
    assert split_suffix(model) == expected


@pytest.mark.parametrize(
    ("model", "bare"),
    [("codex/GPT-Image-2(high)", "gpt-image-2"), ("gpt-image-1.5", "gpt-image-1.5"), ("gpt-image-3", None)],
)
def test_MR_09_image_only_models_are_known_by_their_bare_name(model, bare):
    assert image_only_name(model) == bare


def test_providers_are_ordered_by_their_number_of_sources_then_by_name():
    found = registry([source("1", "b", "m"), source("2", "c", "m"), source("3", "a", "m"), source("4", "c", "m")])
    assert found.resolve("m").providers == ("c", "a", "b")


def test_a_prefix_adds_a_second_name_and_the_offer_knows_the_plain_one():
    found = registry([source("1", "p", "m", prefix="team")])
    assert [info.id for info in found.list()] == ["m", "team/m"]
    assert found.resolve("team/m(high)").offers[0].model == "m"


def test_a_forced_prefix_hides_the_plain_name_unless_it_is_the_prefix():
    found = registry([source("1", "p", "m", "team", prefix="team")], force_model_prefix=True)
    assert [info.id for info in found.list()] == ["team", "team/m", "team/team"]


def test_excluded_models_are_not_offered():
    found = registry([source("1", "p", "a-1", "a-2", "b", excluded=("a-*",))])
    assert [info.id for info in found.list()] == ["b"]
    assert registry([source("1", "p", "a", excluded=("*",))]).list() == ()


def test_a_pattern_serves_names_that_nobody_lists():
    found = registry(
        [
            source("listed", "p", "claude-x"),
            ModelSource(id="open", provider="claude", patterns=("claude-*",), prefix="t", excluded=("claude-2*",)),
        ]
    )
    assert found.resolve("claude-x").providers == ("p",)
    assert found.resolve("claude-new").providers == ("claude",)
    assert found.resolve("t/claude-new").offers[0].model == "claude-new"
    assert found.resolve("claude-2.1").providers == ()
    assert found.resolve("gpt").providers == ()


def test_the_list_is_sorted_and_names_each_model_once():
    found = registry([source("1", "p", "b", "a"), source("2", "q", "a")])
    assert [info.id for info in found.list()] == ["a", "b"]
    assert found.info("A") is not None
    assert found.info("zz") is None


@pytest.mark.parametrize(
    ("model", "pattern", "expected"), [("Ab-C", "ab-*", True), ("ab", "a.", False), ("x", "", False)]
)
def test_a_pattern_is_text_with_stars(model, pattern, expected):
    assert matches(model, (pattern,)) is expected


@pytest.mark.parametrize(
    ("force", "name", "served_as"),
    [
        (False, "claude-9", "claude-9"),
        (False, "T/claude-9", "claude-9"),
        (False, "t/claude-9(high)", "claude-9"),
        (True, "t/claude-9", "claude-9"),
        (True, "claude-9", None),
        (True, "t", "t"),
        (True, "t/", None),
    ],
)
def test_the_rules_of_prefixes_hold_for_names_that_nobody_lists(force, name, served_as):
    found = registry(
        [ModelSource(id="open", provider="claude", patterns=("claude-*", "t"), prefix="t")], force_model_prefix=force
    )
    assert [offer.model for offer in found.resolve(name).offers] == ([served_as] if served_as else [])


def test_a_name_of_any_length_is_looked_up_and_only_a_short_one_is_kept():
    long = "claude-" + "x" * 300
    found = registry([source("listed", "p", long), ModelSource(id="open", provider="claude", patterns=("claude-*",))])
    assert found.resolve(long).providers == ("p",)
    assert found.resolve(f"{long}y").providers == ()
    assert found.resolve(f"claude-1({'9' * 300})").providers == ("claude",)
    assert found._resolved == {}
