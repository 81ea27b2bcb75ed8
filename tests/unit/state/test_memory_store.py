"""The store in memory: the contract of every backend, on a clock of the test's own."""

import pytest

from host.state.memory import MemoryStore
from host.state.store import NotAnInteger, StateFull


class Clock:
    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def store(clock: Clock) -> MemoryStore:
    return MemoryStore(clock=clock, max_keys=3, max_bytes=2000)


async def test_a_value_is_kept_until_it_is_deleted(store: MemoryStore):
    assert await store.get("a", "k") is None
    assert await store.set("a", "k", b"1") is True
    assert await store.get("a", "k") == b"1"
    assert await store.delete("a", "k") is True
    assert await store.delete("a", "k") is False
    assert await store.get("a", "k") is None


async def test_namespaces_do_not_see_each_other(store: MemoryStore):
    await store.set("a", "k", b"1")
    assert await store.get("b", "k") is None
    assert await store.delete("b", "k") is False
    assert await store.increment("b", "k") == 1
    assert await store.get("a", "k") == b"1"


async def test_a_value_with_a_time_limit_ends_exactly_then(store: MemoryStore, clock: Clock):
    await store.set("a", "k", b"1", ttl_s=10.0)
    clock.now_s += 9.999
    assert await store.get("a", "k") == b"1"
    clock.now_s += 0.001
    assert await store.get("a", "k") is None


async def test_setting_again_replaces_the_time_limit(store: MemoryStore, clock: Clock):
    await store.set("a", "k", b"1", ttl_s=10.0)
    await store.set("a", "k", b"2")
    clock.now_s += 100
    assert await store.get("a", "k") == b"2"


async def test_only_if_absent_keeps_what_is_there_and_counts_an_ended_value_as_absent(store: MemoryStore, clock: Clock):
    assert await store.set("a", "k", b"1", ttl_s=10.0, only_if_absent=True) is True
    assert await store.set("a", "k", b"2", only_if_absent=True) is False
    assert await store.get("a", "k") == b"1"
    clock.now_s += 10
    assert await store.set("a", "k", b"3", only_if_absent=True) is True


async def test_expire_prolongs_shortens_and_removes_the_limit(store: MemoryStore, clock: Clock):
    assert await store.expire("a", "k", 1.0) is False
    await store.set("a", "k", b"1", ttl_s=10.0)
    assert await store.expire("a", "k", 100.0) is True
    clock.now_s += 50
    assert await store.get("a", "k") == b"1"
    assert await store.expire("a", "k", None) is True
    clock.now_s += 1000
    assert await store.get("a", "k") == b"1"
    await store.expire("a", "k", 1.0)
    clock.now_s += 1
    assert await store.get("a", "k") is None


async def test_increment_starts_at_zero_and_its_time_limit_counts_only_on_creation(store: MemoryStore, clock: Clock):
    assert await store.increment("a", "k", 2, ttl_s=10.0) == 2
    clock.now_s += 6
    assert await store.increment("a", "k", -3, ttl_s=10.0) == -1
    clock.now_s += 4
    assert await store.increment("a", "k") == 1
    assert await store.get("a", "k") == b"1"


async def test_increment_of_something_else_is_a_failure_and_not_a_miss(store: MemoryStore):
    await store.set("a", "k", b'"text"')
    with pytest.raises(NotAnInteger):
        await store.increment("a", "k")
    assert await store.get("a", "k") == b'"text"'


@pytest.mark.parametrize("value", [b"1_000", b" 5", b"+5", b"", b"9223372036854775808"])
async def test_an_integer_is_what_every_store_takes_for_one(store: MemoryStore, value: bytes):
    await store.set("a", "k", value)
    with pytest.raises(NotAnInteger):
        await store.increment("a", "k")
    assert await store.get("a", "k") == value


@pytest.mark.parametrize(("value", "by"), [(b"9223372036854775807", 1), (b"-9223372036854775808", -1)])
async def test_a_sum_that_no_store_can_hold_is_refused_and_changes_nothing(store: MemoryStore, value: bytes, by: int):
    await store.set("a", "k", value)
    with pytest.raises(NotAnInteger):
        await store.increment("a", "k", by)
    assert await store.get("a", "k") == value


async def test_a_full_namespace_refuses_new_keys_and_keeps_the_old_ones(store: MemoryStore):
    for key in "abc":
        await store.set("n", key, b"1")
    with pytest.raises(StateFull):
        await store.set("n", "d", b"1")
    with pytest.raises(StateFull):
        await store.increment("n", "d")
    assert await store.set("n", "a", b"2") is True
    assert await store.set("other", "d", b"1") is True
    assert [await store.get("n", key) for key in "abcd"] == [b"2", b"1", b"1", None]


async def test_a_value_beyond_the_size_limit_is_refused_and_the_old_one_stays(store: MemoryStore):
    await store.set("n", "a", b"old")
    with pytest.raises(StateFull):
        await store.set("n", "a", b"x" * 2001)
    assert await store.get("n", "a") == b"old"


async def test_ended_values_make_room(store: MemoryStore, clock: Clock):
    for key in "abc":
        await store.set("n", key, b"1", ttl_s=1.0)
    clock.now_s += 1
    assert await store.set("n", "d", b"1") is True


async def test_rewriting_one_key_with_a_limit_does_not_grow_the_store(store: MemoryStore):
    for _ in range(1000):
        await store.set("n", "k", b"1", ttl_s=60.0)
    assert len(store._namespaces["n"].expiries) < 100
