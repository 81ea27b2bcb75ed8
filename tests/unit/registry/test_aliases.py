"""Other names for models, and what clients are shown."""

from dataclasses import replace
from math import inf

import pytest

from host.credentials.classify import classify
from host.credentials.cooldown import CooldownBook
from host.credentials.records import AliasRule, Credential, CredentialModel, with_suffix
from host.registry.aliases import merged, renamed, sanitised
from host.registry.groups import Group, Grouper, Infos, ModelRules
from host.registry.listing import Listing, listed_models
from host.registry.models import Catalogue, ModelRegistry
from host.registry.suffix import split_suffix
from pluginabi.errors import ErrorBody
from pluginabi.payloads.common import ModelInfo
from tests.support.pipeline import Clock


def rule(name: str, alias: str, **fields) -> AliasRule:
    return AliasRule(name=name, alias=alias, **fields)


def infos(*names: str) -> Infos:
    return tuple(ModelInfo(id=name) for name in names)


class Listed:
    """What plugins list: for providers, and for single credentials."""

    def __init__(self, providers: dict[str, Infos] | None = None, credentials: dict[str, Infos] | None = None) -> None:
        self.providers = providers or {}
        self.credentials = credentials or {}

    def of_provider(self, credential: Credential) -> Infos:
        return () if credential.models else self.providers.get(credential.provider, ())

    def of_credential(self, credential_id: str) -> Infos | None:
        return self.credentials.get(credential_id)


def account(name: str = "a", provider: str = "gem", **fields) -> Credential:
    return Credential(
        **{"id": name, "provider": provider, "label": name, "source_kind": "file", "auth_kind": "oauth", **fields}
    )


def key(name: str = "k", models: tuple[tuple[str, str], ...] = (), **fields) -> Credential:
    table = tuple(CredentialModel(client=alias, upstream=upstream) for upstream, alias in models)
    return Credential(
        **{"id": name, "provider": "gem", "label": name, "auth_kind": "apikey", "models": table, **fields}
    )


def compat(name: str = "k", models: tuple[tuple[str, str], ...] = (), **fields) -> Credential:
    return key(name, models, attributes={"compat_name": "acme"}, **fields)


def registry(*credentials: Credential, listed: Listed | None = None, grouper: Grouper | None = None, **channels):
    rules = ModelRules(aliases={channel: sanitised(found) for channel, found in channels.items()})
    groups = (grouper or Grouper()).groups(credentials, rules, listed or Listed())
    return ModelRegistry(
        Catalogue([group.source for group in groups]), sizes={it.source.id: len(it.members) for it in groups}
    )


def upstreams(found: ModelRegistry, model: str) -> list[str]:
    """The upstream's names for a request, as the executor gets them."""
    resolution = found.resolve(model)
    return [with_suffix(name, resolution.suffix) for offer in resolution.offers for name in offer.upstreams]


PRO = "gemini-2.5-pro-exp-03-25"
SONNET = "claude-sonnet-4-5-20250514"
BRACKET = "gemini-2.5-pro(high"


@pytest.mark.parametrize(
    ("vector", "alias", "asked", "expected"),
    [
        ("C1", rule(PRO, "gemini-2.5-pro"), "gemini-2.5-pro(8192)", [f"{PRO}(8192)"]),
        ("C2", rule(PRO, "gemini-2.5-pro"), "gemini-2.5-pro()", [PRO]),
        ("C4", rule(f"{SONNET}(low)", "claude-sonnet-4-5"), "claude-sonnet-4-5(high)", [f"{SONNET}(low)"]),
        ("C5", rule(PRO, "Gemini-2.5-Pro"), "gemini-2.5-pro(high)", [f"{PRO}(high)"]),
        ("C6", rule(PRO, BRACKET), BRACKET, [PRO]),
        ("unmapped", rule("nothing", "gemini-2.5-pro"), "gemini-2.5-pro", []),
    ],
)
def test_an_accounts_model_is_asked_for_under_its_own_name(vector, alias, asked, expected):
    listed = Listed({"gem": infos(PRO, SONNET)})
    assert upstreams(registry(account(), listed=listed, gem=[alias]), asked) == expected


def test_C7_an_alias_of_another_provider_maps_nothing():
    listed = Listed({"gem": infos(PRO)})
    assert upstreams(registry(account(), listed=listed, other=[rule(PRO, "x")]), "x") == []


def test_C9_an_api_key_has_no_aliases_of_accounts():
    listed = Listed({"gem": infos(PRO)})
    found = registry(key(), account("f", auth_kind="apikey"), listed=listed, gem=[rule(PRO, "x")])
    assert upstreams(found, "x") == []
    assert upstreams(found, PRO) == [PRO]


def test_C10_the_account_of_a_plugins_provider_is_mapped_like_any_other():
    listed = Listed({"of-a-plugin": infos("m")})
    aliases = {"of-a-plugin": [rule("m", "x")]}
    assert upstreams(registry(account(provider="of-a-plugin"), listed=listed, **aliases), "x") == ["m"]


def test_the_accounts_own_alias_comes_before_the_common_one():
    listed = Listed({"gem": infos("m1", "m2")})
    own = account(model_aliases=(rule("m1", "x"),))
    assert upstreams(registry(own, listed=listed, gem=[rule("m2", "X"), rule("m2", "y")]), "x") == ["m1"]
    assert upstreams(registry(own, listed=listed, gem=[rule("m2", "X"), rule("m2", "y")]), "y") == ["m2"]


@pytest.mark.parametrize(
    ("vector", "rules", "shown"),
    [
        ("C11", [rule("n", "a")], ["a"]),
        ("C12", [rule("n", "a", fork=True)], ["n", "a"]),
        ("3.3", [rule("n", "a"), rule("n", "b")], ["a", "b"]),
        ("3.3", [rule("n", "a"), rule("n", "b", fork=True)], ["n", "a", "b"]),
        ("3.3", [rule("n", "m")], ["m"]),
    ],
)
def test_an_aliased_model_is_listed_under_its_aliases_unless_it_is_forked(vector, rules, shown):
    assert [row.client for row in renamed(infos("n"), rules)] == shown


def test_an_alias_that_is_another_models_name_is_not_listed_twice():
    assert [row.client for row in renamed(infos("m", "n"), [rule("n", "M")])] == ["m"]


def test_a_listed_alias_keeps_the_facts_of_its_model():
    info = ModelInfo(id="n", name="models/n", context_length=5, display_name="N")
    [row] = renamed([info], [rule("n", "a", display_name="Mine")])
    assert (row.info.id, row.info.name, row.info.context_length) == ("a", "models/a", 5)
    assert row.info.display_name == "Mine"


def test_C27_rules_that_can_have_no_effect_are_left_out_and_an_alias_counts_once():
    given = [rule("n", "n"), rule("", "a"), rule("n", "A"), rule("o", "a")]
    assert [(it.name, it.alias) for it in sanitised(given)] == [("n", "A")]


@pytest.mark.parametrize("order", [("n", "m"), ("m", "n")])
def test_3_3_an_alias_that_is_also_the_name_of_a_model_leads_to_its_target_whatever_is_listed_first(order):
    found = registry(account(), listed=Listed({"gem": infos(*order)}), gem=[rule("n", "m")])
    assert (upstreams(found, "m(high)"), [info.id for info in found.list()]) == (["n(high)"], ["m"])


def test_3_3_such_an_alias_may_lead_to_a_model_that_is_not_listed():
    found = registry(account(), listed=Listed({"gem": infos("m")}), gem=[rule("preview", "M")])
    assert (upstreams(found, "m"), [info.id for info in found.list()]) == (["preview"], ["m"])


def test_two_names_may_change_places():
    found = registry(account(), listed=Listed({"gem": infos("a", "b")}), gem=[rule("a", "b"), rule("b", "a")])
    assert [upstreams(found, name) for name in ("a", "b")] == [["b"], ["a"]]


def test_a_key_without_a_list_serves_what_another_key_of_its_provider_lists_as_the_providers_own():
    """Not what is somebody's other name for something, nor what only another provider is known to have."""
    vendors = {"model_patterns": ("gem-*",)}
    open_one = key("open", excluded_models=("gem-8",), **vendors)
    listing = key("listing", (("gem-9", "gem-9"), ("gem-8", "gem-8"), ("gem-7", "gem-fast")), **vendors)
    other = key("other", (("gem-6", "gem-6"),), provider="other")
    found = registry(open_one, listing, other)
    expected = {"gem-9": ["gem", "gem"], "gem-8": ["gem"], "gem-fast": ["gem"], "gem-6": ["other"]}
    assert {name: [it.source.provider for it in found.resolve(name).offers] for name in expected} == expected
    assert upstreams(found, "gem-9(high)") == ["gem-9(high)", "gem-9(high)"]


def test_own_and_common_rules_are_merged_by_alias():
    found = merged((rule("n", "A"),), (rule("o", "a"), rule("o", "b")))
    assert [(it.name, it.alias) for it in found] == [("n", "A"), ("o", "b")]


G25 = ((PRO, "g25p"), ("gemini-2.5-flash(low)", "g25f"))


@pytest.mark.parametrize(
    ("vector", "asked", "expected"),
    [
        ("C14", "g25p(8192)", [f"{PRO}(8192)"]),
        ("C15", "g25f(high)", ["gemini-2.5-flash(low)"]),
        ("C15", "g25f", ["gemini-2.5-flash(low)"]),
        ("C16", "G25P", [PRO]),
    ],
)
def test_a_key_with_a_table_of_models_serves_its_aliases(vector, asked, expected):
    assert upstreams(registry(key(models=G25)), asked) == expected


def test_C20_equal_aliases_of_a_compatible_provider_are_a_pool_and_of_any_other_key_the_first_counts():
    models = (("d", "big"), ("g", "big"), ("k", "big"), ("d", "big"))
    assert upstreams(registry(compat(models=models)), "big(8192)") == ["d(8192)", "g(8192)", "k(8192)"]
    assert upstreams(registry(key(models=models)), "big") == ["d"]


def test_the_health_of_a_model_has_one_name_whatever_it_was_asked_for_by():
    found = registry(key(models=(("M(low)", "a"), ("m", "b"), ("m(high)", "c"))))
    assert {offer.keys for name in "abc" for offer in found.offers(name)} == {("m",)}


def test_an_account_that_lists_nothing_maps_aliases_of_what_it_serves_by_pattern():
    open_one = account(model_patterns=("gem-*",))
    found = registry(open_one, gem=[rule("gem-9", "x"), rule("other", "y")])
    assert (upstreams(found, "x"), upstreams(found, "y"), upstreams(found, "gem-7")) == (["gem-9"], [], ["gem-7"])


def test_exclusions_speak_of_the_providers_names():
    listed = Listed({"gem": infos("m-mini", "m-large")})
    found = registry(account(excluded_models=("*mini",)), listed=listed, gem=[rule("m-large", "x-mini")])
    assert [info.id for info in found.list()] == ["x-mini"]


def test_an_alias_does_not_serve_what_is_excluded_of_the_models_that_are_known_by_pattern():
    """An alias is another name for a model, not a way around the exclusion of it."""
    closed = account(model_patterns=("gem-*",), excluded_models=("gem-9*", "hidden"))
    found = registry(closed, gem=[rule("gem-9(high)", "x"), rule("gem-7", "y"), rule("gem-7", "hidden")])
    assert (upstreams(found, "x"), upstreams(found, "y"), upstreams(found, "hidden")) == ([], ["gem-7"], [])


def test_what_a_plugin_lists_for_one_credential_counts_instead_of_the_providers_list():
    listed = Listed({"gem": infos("m")}, {"b": infos("n"), "c": ()})
    found = registry(account("a"), account("b"), account("c"), listed=listed)
    assert [info.id for info in found.list()] == ["m", "n"]
    assert found.count("m") == 1


def test_credentials_that_differ_in_secrets_only_are_one_group_which_outlives_a_reload():
    grouper, listed = Grouper(), Listed({"gem": infos("m")})

    def groups(*credentials: Credential) -> tuple[Group, ...]:
        return grouper.groups(credentials, ModelRules(), listed)

    first = [account(name) for name in ("b", "a", "c")]
    [before] = groups(*first)
    assert [member.id for member in before.members] == ["a", "b", "c"]
    [after, other] = groups(*first[1:], account("b"), account("d", priority=5))
    assert after.source is before.source
    assert (len(after.members), other.sample.id) == (3, "d")
    listed.providers["gem"] = infos("m")
    assert groups(*first)[0].source is before.source
    listed.providers["gem"] = infos("m", "n")
    assert groups(*first)[0].source is not before.source


def test_tables_of_models_that_nobody_has_any_more_are_forgotten():
    grouper, listed = Grouper(), Listed({"gem": infos("m")})
    keys = [key(f"k{number}", (("u", f"m{number}"),)) for number in range(100)]
    kept: set[int] = set()
    for number in range(500):
        listed.credentials = {"a": infos(f"m{number}"), "b": infos("n")}
        changing = key("changing", (("u", f"x{number}"),))
        groups = grouper.groups([*keys, account("a"), account("b"), changing], ModelRules(), listed)
        kept |= {id(group.source) for group in groups if group.sample.id in ("b", "k7")}
    assert len(grouper._numbers) < 500
    assert len(kept) == 2


def test_a_disabled_credential_is_in_no_group():
    assert Grouper().groups([account(disabled=True)], ModelRules(), Listed({"gem": infos("m")})) == ()


def test_2_3_providers_are_ordered_by_their_credentials_and_counted():
    one, two = key("1", (("m", "m"),), provider="one"), key("2", (("m", "m"),), provider="two")
    found = registry(one, two, key("3", (("m", "m"),), provider="two"))
    assert (found.resolve("m").providers, found.count("m")) == (("two", "one"), 3)


UNAUTHORIZED, QUOTA, BUSY = (classify(ErrorBody(http_status=status)) for status in (401, 429, 503))
WHOLE = classify(ErrorBody(http_status=401, scope="credential"))


@pytest.mark.parametrize(
    ("verdicts", "is_listed"),
    [
        ((), True),
        ((QUOTA, QUOTA, QUOTA), True),
        ((UNAUTHORIZED,), True),
        ((UNAUTHORIZED, UNAUTHORIZED, UNAUTHORIZED), False),
        ((UNAUTHORIZED, QUOTA, QUOTA), False),
        ((BUSY, BUSY, BUSY), True),
        ((WHOLE, WHOLE, WHOLE), False),
        ((WHOLE, UNAUTHORIZED), True),
    ],
)
def test_2_3_a_used_up_limit_never_hides_a_model_other_suspensions_of_all_do(verdicts, is_listed):
    book = CooldownBook(clock=Clock())
    credentials = [key(name, (("m", "alias"), ("other", "other"))) for name in "abc"]
    groups = Grouper().groups(credentials, ModelRules(), Listed())
    found = ModelRegistry(Catalogue([group.source for group in groups]))
    for credential, verdict in zip(credentials, verdicts, strict=False):
        book.failed(credential.id, "m", verdict)
    shown = {info.id for info in listed_models(found, {it.source.id: it for it in groups}, book).models}
    assert ("alias" in shown) is is_listed
    assert ("other" in shown) is (WHOLE not in verdicts or is_listed)


def test_2_3_a_limit_that_was_reached_more_than_five_minutes_ago_does_not_count_beside_a_suspension():
    clock = Clock()
    book = CooldownBook(clock=clock)
    groups = Grouper().groups([key(name, (("m", "m"),)) for name in "ab"], ModelRules(), Listed())
    found = ModelRegistry(Catalogue([group.source for group in groups]))
    book.failed("a", "m", replace(QUOTA, cooldown_s=3600.0))
    book.failed("b", "m", UNAUTHORIZED)

    def shown() -> Listing:
        return listed_models(found, {it.source.id: it for it in groups}, book)

    assert (shown().models, shown().until_s) == ((), clock.now_s + 300)
    clock.now_s += 299.9
    assert shown().models == ()
    clock.now_s += 0.1
    assert ([info.id for info in shown().models], shown().until_s) == (["m"], inf)


def test_a_pool_is_hidden_only_when_all_its_models_are():
    book = CooldownBook(clock=Clock())
    groups = Grouper().groups([compat("a", (("d", "big"), ("g", "big")))], ModelRules(), Listed())
    found = ModelRegistry(Catalogue([group.source for group in groups]))
    shown = []
    for model in ("d", "g"):
        book.failed("a", model, UNAUTHORIZED)
        shown.append(len(listed_models(found, {it.source.id: it for it in groups}, book).models))
    assert shown == [1, 0]


def test_the_suffix_of_a_name_without_closing_bracket_is_part_of_it():
    assert split_suffix(BRACKET) == (BRACKET, None)
