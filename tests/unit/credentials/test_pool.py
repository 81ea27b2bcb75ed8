"""Picking a credential with the built-in strategies."""

from dataclasses import dataclass

import pytest

from host.credentials.classify import classify
from host.credentials.cooldown import CooldownBook
from host.credentials.pool import MAX_CURSORS, CredentialPool, Cursors, Exhausted
from host.credentials.records import Credential
from pluginabi.errors import ErrorBody
from tests.support.pipeline import Clock

QUOTA = classify(ErrorBody(http_status=429, retry_after_ms=60_000))
UNAUTHORIZED = classify(ErrorBody(http_status=401))


@dataclass(frozen=True)
class Pickable:
    credential: Credential
    state_models: tuple[str, ...] = ("m",)


def choices(*names: str, priority: int = 0, provider: str = "p") -> list[Pickable]:
    return [Pickable(Credential(id=name, provider=provider, label=name, priority=priority)) for name in sorted(names)]


def pool_of(*pickables: Pickable, **fields) -> CredentialPool:
    return CredentialPool([it.credential for it in pickables], book=CooldownBook(clock=Clock()), **fields)


def pick_ids(pool, lanes, count, *, strategy="round-robin", cursor="p:m"):
    found = []
    for _ in range(count):
        free = pool.free(lanes, ())
        assert not isinstance(free, Exhausted)
        found.append(pool.pick(free, strategy=strategy, cursor=cursor).credential.id)
    return found


def test_D2_round_robin_goes_by_id():
    lanes = choices("b", "a", "c")
    assert pick_ids(pool_of(*lanes), lanes, 4) == ["a", "b", "c", "a"]


def test_fill_first_always_takes_the_first_that_is_free():
    lanes = choices("a", "b")
    pool = pool_of(*lanes)
    assert pick_ids(pool, lanes, 2, strategy="fill-first") == ["a", "a"]
    pool.failed(lanes[0].credential, "m", QUOTA)
    assert pick_ids(pool, lanes, 1, strategy="fill-first") == ["b"]


def test_D3_only_the_best_priority_is_used():
    lanes = [*choices("a", "b", priority=10), *choices("c")]
    assert pick_ids(pool_of(*lanes), lanes, 4) == ["a", "b", "a", "b"]


def test_D4_a_blocked_tier_makes_room_for_the_next():
    lanes = [*choices("a", priority=10), *choices("c")]
    pool = pool_of(*lanes)
    pool.failed(lanes[0].credential, "m", QUOTA)
    assert pick_ids(pool, lanes, 1) == ["c"]


def test_D12_mixed_providers_take_turns_in_proportion_to_their_credentials():
    lanes = [*choices("gemini-a", "gemini-b", provider="gemini"), *choices("claude-a", provider="claude")]
    assert pick_ids(pool_of(*lanes), lanes, 4) == ["gemini-a", "gemini-b", "claude-a", "gemini-a"]


def test_D13_priority_counts_across_providers():
    lanes = [*choices("claude-a", provider="claude", priority=5), *choices("gemini-a", provider="gemini")]
    assert pick_ids(pool_of(*lanes), lanes, 2) == ["claude-a", "claude-a"]


def test_D8_all_blocked_by_a_limit_is_cooling_until_the_first_recovers():
    lanes = choices("a", "b")
    pool = pool_of(*lanes)
    pool.failed(lanes[0].credential, "m", QUOTA)
    pool.failed(lanes[1].credential, "m", classify(ErrorBody(http_status=429, retry_after_ms=30_000)))
    assert pool.free(lanes, ()) == Exhausted("cooling", 30.0)


def test_D10_a_block_for_another_reason_is_unavailable():
    lanes = choices("a", "b")
    pool = pool_of(*lanes)
    pool.failed(lanes[0].credential, "m", QUOTA)
    pool.failed(lanes[1].credential, "m", UNAUTHORIZED)
    assert pool.free(lanes, ()) == Exhausted("unavailable", 60.0)


def test_everybody_tried_is_not_found():
    lanes = choices("a")
    assert pool_of(*lanes).free(lanes, {"a"}) == Exhausted("not_found")


def test_a_pool_alias_is_blocked_only_when_all_its_models_are():
    lanes = [Pickable(Credential(id="a", provider="p", label="a"), ("d", "g"))]
    pool = pool_of(*lanes)
    pool.failed(lanes[0].credential, "d", QUOTA)
    assert pool.free(lanes, ()) == lanes
    pool.failed(lanes[0].credential, "g", QUOTA)
    assert isinstance(pool.free(lanes, ()), Exhausted)


@pytest.mark.parametrize("how", ["everywhere", "on the credential"])
def test_with_cooling_disabled_nothing_is_blocked(how):
    credential = Credential(id="a", provider="p", label="a", disable_cooling=how == "on the credential")
    lanes = [Pickable(credential)]
    pool = pool_of(*lanes, cooling_disabled=how == "everywhere")
    assert pool.failed(credential, "m", UNAUTHORIZED) == 0
    assert pool.free(lanes, ()) == lanes


def test_D25_too_many_cursors_start_over_and_the_pick_is_still_valid():
    cursors = Cursors()
    for number in range(MAX_CURSORS):
        cursors.next(str(number))
    assert cursors.next("one more") == 0
    assert len(cursors.positions) == 1


def test_providers_are_those_with_a_credential_that_is_not_disabled():
    pool = CredentialPool(
        [
            Credential(id="1", provider="b", label=""),
            Credential(id="2", provider="a", label=""),
            Credential(id="3", provider="c", label="", disabled=True),
        ]
    )
    assert pool.providers() == ("a", "b")
