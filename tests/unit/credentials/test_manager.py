"""The manager: one order, one set of records, and exactly what changed."""

from dataclasses import replace

from host.config.model import CompatKey, CompatProvider, Config, ProviderKey
from host.credentials.manager import CredentialManager
from host.credentials.records import Credential, CredentialChange
from host.credentials.secret import Secret


def keys(*names: str) -> Config:
    return Config(claude_api_key=[ProviderKey(api_key=name) for name in names])


def of_file(name: str, **fields) -> Credential:
    return Credential(
        **{"id": name, "provider": "claude", "label": name, "source_kind": "file", "handle": f"h-{name}"} | fields
    )


def labelled(manager: CredentialManager) -> list[str]:
    return [record.id for record in manager.credentials]


def test_reading_the_next_configuration_says_what_changed_and_keeps_the_rest_as_it_is():
    manager = CredentialManager()
    first = manager.apply_config(keys("a", "b"))
    a, b = manager.credentials
    assert (first.added, first.reset) == ({a.id, b.id}, {a.id, b.id})
    change = manager.apply_config(keys("c", "b"))
    c, kept = manager.credentials
    assert kept is b
    assert change == CredentialChange(added=frozenset({c.id}), removed=frozenset({a.id}), reset=frozenset({a.id, c.id}))
    assert manager.generation == 2
    assert not manager.apply_config(keys("c", "b"))
    assert manager.generation == 2


def test_a_changed_entry_keeps_its_handle_and_says_whether_routing_is_concerned():
    manager = CredentialManager()
    manager.apply_config(Config(claude_api_key=[ProviderKey(api_key="a")]))
    (before,) = manager.credentials
    change = manager.apply_config(Config(claude_api_key=[ProviderKey(api_key="a", priority=5)]))
    (after,) = manager.credentials
    assert (change.changed, change.routing, change.reset) == ({before.id}, True, frozenset())
    assert (after.handle, after.priority, after.created_at_s) == (before.handle, 5, before.created_at_s)


def test_keys_that_only_change_places_are_no_change_but_have_a_new_order():
    manager = CredentialManager()
    manager.apply_config(keys("a", "b"))
    a, b = manager.credentials
    assert not manager.apply_config(keys("b", "a"))
    assert manager.credentials == (b, a)


def test_files_come_after_keys_in_the_order_of_their_names():
    manager = CredentialManager()
    manager.set_source("/auths/b.json", [of_file("b.json")])
    manager.set_source("/auths/A.json", [of_file("A.json#1"), of_file("A.json#0")])
    manager.apply_config(keys("k"))
    assert labelled(manager)[1:] == ["A.json#1", "A.json#0", "b.json"]
    manager.set_source("/auths/A.json", [])
    assert labelled(manager)[1:] == ["b.json"]


def test_a_new_token_touches_a_record_and_nothing_that_routes():
    told: list[CredentialChange] = []
    manager = CredentialManager()
    manager.on_change = told.append
    old = of_file("f.json", secret=Secret("old"))
    manager.set_source("f", [old])
    manager.set_source("f", [replace(old, secret=Secret("new"), last_refreshed_at_s=5.0)])
    assert [change.routing for change in told] == [True, False]
    assert told[1].touched == {"f.json"}
    assert manager.current("h-f.json").secret == Secret("new")


def test_B16_a_record_that_is_switched_off_or_on_starts_with_a_clean_state_and_B15_any_other_update_keeps_it():
    manager = CredentialManager()
    resets: list[frozenset[str]] = []
    manager.on_change = lambda change: resets.append(change.reset)
    for fields in ({}, {"priority": 1}, {"disabled": True}, {"disabled": True, "note": "x"}, {}):
        manager.set_source("f", [of_file("f.json", **fields)])
    assert resets == [{"f.json"}, frozenset(), {"f.json"}, frozenset(), {"f.json"}]


def test_B17_a_record_that_went_and_came_back_starts_with_a_clean_state():
    manager = CredentialManager()
    resets: list[frozenset[str]] = []
    manager.on_change = lambda change: resets.append(change.reset)
    for records in ([of_file("f.json")], [], [of_file("f.json")]):
        manager.set_source("f", records)
    assert resets == [{"f.json"}] * 3


def test_a_thousand_keys_of_one_provider_of_which_one_changes_rebuild_one_record():
    def config(last: str) -> Config:
        entries = [CompatKey(api_key=f"k{number}") for number in range(1000)] + [CompatKey(api_key=last)]
        return Config(
            openai_compatibility=[CompatProvider(name="a", base_url="https://a.test", api_key_entries=entries)]
        )

    manager = CredentialManager()
    manager.apply_config(config("x"))
    before = manager.credentials
    change = manager.apply_config(config("y"))
    assert (len(change.added), len(change.removed), len(change.ids)) == (1, 1, 2)
    assert all(old is new for old, new in zip(before[:1000], manager.credentials[:1000], strict=True))
