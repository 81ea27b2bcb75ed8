"""Choosing a credential with the built-in strategies."""

import random

import pytest

from host.credentials.classify import classify
from host.credentials.cooldown import NO_CAUSE, CooldownBook
from host.credentials.policy import RoutingPolicy
from host.credentials.pool import NOBODY, CredentialPool, Exhausted, Health, Tier
from host.credentials.ready import Members
from host.credentials.records import Credential
from host.credentials.retry import Search
from host.credentials.select import MAX_CURSORS, STRATEGIES, Accounts, Cursors
from pluginabi.errors import ErrorBody
from tests.support.pipeline import Clock

QUOTA = classify(ErrorBody(http_status=429, retry_after_ms=60_000))
SHORT_QUOTA = classify(ErrorBody(http_status=429, retry_after_ms=30_000))
UNAUTHORIZED = classify(ErrorBody(http_status=401))


def credential(name: str, **fields) -> Credential:
    return Credential(**{"id": name, "provider": "p", "label": name, **fields})


def credentials(*names: str, **fields) -> list[Credential]:
    return [credential(name, **fields) for name in sorted(names)]


class Bench:
    """A pool and its tiers: one per list of credentials."""

    def __init__(self, *tiers: list[Credential], models: tuple[str, ...] = ("m",), **policy) -> None:
        self.clock = Clock()
        self.pool = CredentialPool(
            [credential for tier in tiers for credential in tier],
            policy=RoutingPolicy(**policy),
            health=Health(book=CooldownBook(clock=self.clock)),
        )
        self.tiers: list[Tier] = [self.pool.tier(Members(tier), [models]) for tier in tiers]

    def choose(self, search: Search | None = None, *, strategy: str = "round-robin", cursor: str = "p:m"):
        found = self.pool.choose(
            self.tiers, search or Search(self.pool.policy), strategy=STRATEGIES[strategy], cursor=cursor
        )
        if isinstance(found, Exhausted):
            return found
        tier, position = found
        return tier.ready.members.credentials[position].id

    def ids(self, count: int, **how) -> str:
        return " ".join(str(self.choose(**how)) for _ in range(count))

    def fail(self, name: str, verdict=QUOTA, model: str = "m") -> float:
        return self.pool.failed(self.pool.by_id[name], model, verdict, cause=NO_CAUSE)


def test_12_1_who_waited_for_a_round_takes_turns_by_weight_as_well():
    bench = Bench([credential("a", weight=2), credential("b"), credential("c")], strategy="weighted-round-robin")
    found = []
    for _ in range(8):
        waited = Search(bench.pool.policy)
        waited.next_round(of_all=True)
        found.append(bench.choose(waited, strategy="wrr"))
    assert "".join(found) == "abcaabca"


def test_D2_round_robin_goes_by_id():
    assert Bench(credentials("b", "a", "c")).ids(4) == "a b c a"


def test_fill_first_always_takes_the_first_that_is_free():
    bench = Bench(credentials("a", "b"))
    assert bench.ids(2, strategy="fill-first") == "a a"
    bench.fail("a")
    assert bench.ids(1, strategy="fill-first") == "b"


def test_D3_only_the_best_priority_is_used():
    assert Bench(credentials("a", "b", priority=10), credentials("c")).ids(4) == "a b a b"


def test_D4_a_blocked_tier_makes_room_for_the_next():
    bench = Bench(credentials("a", priority=10), credentials("c"))
    bench.fail("a")
    assert bench.ids(1) == "c"


def test_D7_a_failure_that_brings_no_rest_blocks_nobody():
    bench = Bench(credentials("a"))
    bench.fail("a", classify(ErrorBody(http_status=502, scope="connection")))
    assert bench.ids(1) == "a"


def test_D12_mixed_providers_take_turns_in_proportion_to_their_credentials():
    lanes = [*credentials("gemini-a", "gemini-b", provider="gemini"), *credentials("claude-a", provider="claude")]
    assert Bench(lanes).ids(4) == "gemini-a gemini-b claude-a gemini-a"


def test_12_1_weights_are_met_smoothly():
    lanes = [credential("a", weight=5), credential("b", weight=1), credential("c", weight=1)]
    assert Bench(lanes).ids(7, strategy="weighted-round-robin") == "a a b a c a a"


def test_a_weight_of_nothing_excludes_only_while_weights_count_and_keeps_no_lower_tier_away():
    lanes = [credential("a", weight=0, priority=1)], [credential("b", weight=3)]
    assert Bench(*lanes).ids(2, strategy="weighted-round-robin") == "b b"
    assert Bench(*lanes).ids(2) == "a a"
    assert Bench(lanes[0]).choose(strategy="weighted-round-robin") == NOBODY


def test_weights_are_met_over_a_changing_set_of_free_credentials():
    lanes = [credential("a", weight=4), credential("b", weight=2), *credentials("c", "d", "e", weight=1)]
    bench = Bench(lanes)
    counts = dict.fromkeys("abcde", 0)
    for number in range(900):
        if number % 9 == 0:
            bench.fail("e", SHORT_QUOTA)
        if number % 9 == 5:
            bench.clock.now_s += 30
        counts[bench.choose(strategy="weighted-round-robin")] += 1
    assert counts["a"] / counts["b"] == pytest.approx(2, abs=0.3)
    assert counts["c"] == pytest.approx(counts["d"], abs=10)


def test_D8_all_blocked_by_a_limit_is_cooling_until_the_first_recovers():
    bench = Bench(credentials("a", "b"))
    bench.fail("a")
    bench.fail("b", SHORT_QUOTA)
    assert bench.choose() == Exhausted("cooling", 30.0)
    bench.clock.now_s += 10
    assert bench.choose() == Exhausted("cooling", 20.0)


def test_D10_a_block_for_another_reason_is_unavailable():
    bench = Bench(credentials("a", "b"))
    bench.fail("a")
    bench.fail("b", UNAUTHORIZED)
    assert bench.choose() == Exhausted("unavailable", 60.0)


def test_D19_who_has_recovered_is_picked_again_without_any_event():
    bench = Bench(credentials("a"))
    bench.fail("a")
    bench.clock.now_s += 60
    assert bench.choose() == "a"


def test_everybody_tried_is_not_found():
    bench = Bench(credentials("a"))
    search = Search(bench.pool.policy)
    search.note_tried("a")
    assert bench.choose(search) == NOBODY


@pytest.mark.parametrize("strategy", ["round-robin", "weighted-round-robin", "fill-first"])
def test_a_search_never_comes_to_the_same_credential_twice_and_finds_everyone(strategy):
    bench = Bench(credentials("a", "b", "c", priority=1), credentials("d", "e"))
    bench.fail("b")
    search = Search(bench.pool.policy)
    found = []
    while isinstance(name := bench.choose(search, strategy=strategy), str):
        search.note_tried(name)
        found.append(name)
    assert sorted(found) == ["a", "c", "d", "e"]
    assert sorted(found[:2]) == ["a", "c"]


def test_a_search_takes_one_turn_however_many_it_tries():
    bench = Bench(credentials("a", "b", "c"))
    search = Search(bench.pool.policy)
    for _ in range(3):
        search.note_tried(bench.choose(search))
    assert bench.choose() == "b"


def test_a_pool_alias_is_blocked_only_when_all_its_models_are():
    bench = Bench(credentials("a"), models=("d", "g"))
    bench.fail("a", model="d")
    assert bench.choose() == "a"
    bench.fail("a", SHORT_QUOTA, model="g")
    assert bench.choose() == Exhausted("cooling", 30.0)


def test_a_block_on_the_whole_credential_counts_for_every_model():
    bench = Bench(credentials("a", "b"), models=("d", "g"))
    bench.fail("a", classify(ErrorBody(http_status=401, scope="credential")), model="d")
    assert bench.ids(2) == "b b"


@pytest.mark.parametrize(
    ("everywhere", "own", "rests"),
    [(True, None, False), (False, True, False), (True, False, True), (False, None, True)],
)
def test_F14_cooling_is_switched_off_as_a_whole_or_for_one_credential_which_has_the_last_word(everywhere, own, rests):
    bench = Bench([credential("a", disable_cooling=own)], cooling_disabled=everywhere)
    assert (bench.fail("a", UNAUTHORIZED) > 0) is rests
    assert (bench.choose() == "a") is not rests


def test_F10_a_model_that_is_not_supported_rests_even_where_cooling_is_disabled():
    bench = Bench(credentials("a"), cooling_disabled=True)
    assert bench.fail("a", classify(ErrorBody(http_status=400, code="model_not_supported"))) == 12 * 3600


def test_D25_too_many_cursors_start_over_and_the_pick_is_still_valid():
    cursors = Cursors()
    for number in range(MAX_CURSORS):
        cursors.next(str(number))
    assert cursors.next("one more") == 0
    assert len(cursors.positions) == 1


def test_B20_providers_are_those_with_a_credential_that_is_not_disabled():
    pool = CredentialPool(
        [credential("1", provider="b"), credential("2", provider="a"), credential("3", provider="c", disabled=True)]
    )
    assert pool.providers() == ("a", "b")


def test_F21_F22_a_credential_is_out_of_order_when_every_model_it_is_known_for_is():
    bench = Bench(credentials("a"))
    for seconds, model in ((10, "m1"), (20, "m2")):
        bench.fail("a", classify(ErrorBody(http_status=429, retry_after_ms=seconds * 1000)), model=model)
    bench.pool.health.wall_clock = lambda: 5000.0
    health = bench.pool.health.health_of("a", ("m1", "m2"))
    assert (health.unavailable, health.next_retry_at_s, health.failed) == (True, 5010.0, 2)
    bench.clock.now_s += 10
    assert bench.pool.health.health_of("a", ("m1", "m2")).unavailable is False


def test_12_1_turns_by_weight_go_on_after_a_reload_unless_a_weight_changed():
    def lanes(weight: int = 5) -> list[Credential]:
        return [credential("a", weight=weight), credential("b", weight=1), credential("c", weight=1)]

    def reloaded(before: Bench, given: list[Credential]) -> Bench:
        after = Bench(given)
        after.pool = CredentialPool(given, policy=before.pool.policy, health=before.pool.health)
        after.tiers = [after.pool.tier(Members(given), [("m",)])]
        return after

    bench = Bench(lanes())
    found = []
    for _ in range(7):
        found.append(bench.choose(strategy="weighted-round-robin"))
        bench = reloaded(bench, lanes())
    assert " ".join(found) == "a a b a c a a"
    bench.ids(2, strategy="weighted-round-robin")
    assert reloaded(bench, lanes(1)).ids(3, strategy="weighted-round-robin") == "a b c"


def test_12_1_accounts_of_turns_are_bounded():
    accounts = Accounts(limit=3)
    members = Members(credentials("a"))
    first = accounts.of("k0", members)
    assert accounts.of("k0", members) is first
    for number in range(4):
        accounts.of(f"k{number}", members)
    assert accounts.of("k0", members) is not first


@pytest.mark.parametrize("seed", range(40))
def test_12_1_turns_by_weight_are_those_of_the_textbook(seed):
    dice = random.Random(seed)
    weights = [dice.randrange(7) for _ in range(dice.randrange(1, 9))] + [1]
    bench = Bench([credential(f"c{number}", weight=weight) for number, weight in enumerate(weights)])
    credit, total = [0] * len(weights), sum(weights)
    for _ in range(3 * total):
        credit = [have + weight for have, weight in zip(credit, weights, strict=True)]
        turn = max((it for it in range(len(weights)) if weights[it]), key=lambda it: (credit[it], -it))
        credit[turn] -= total
        assert bench.choose(strategy="weighted-round-robin") == f"c{turn}"
