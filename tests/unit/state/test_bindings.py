"""What belongs to what for a while."""

import asyncio

import pytest

from host.state.bindings import HEARD_TTL_S, MemoryBindings, SharedBindings
from host.state.memory import MemoryStore
from host.state.store import StateUnavailable
from host.tasks import TaskGroup
from tests.support.pipeline import Clock


async def test_a_binding_holds_for_its_time_and_is_prolonged_by_use():
    clock = Clock()
    bound = MemoryBindings(clock=clock)
    assert bound.is_empty
    bound.put("k", "a", ttl_s=10)
    clock.now_s += 9
    bound.put("k", "a", ttl_s=10)
    clock.now_s += 9
    assert await bound.get("k") == "a"
    clock.now_s += 1
    assert await bound.get("k") is None
    assert bound.is_empty


async def test_the_bindings_that_were_not_renewed_for_longest_make_room():
    bound = MemoryBindings(max_bindings=2)
    for key in ("a", "b", "a", "c"):
        bound.put(key, key, ttl_s=60)
    assert [await bound.get(key) for key in "abc"] == ["a", None, "c"]


async def test_only_the_binding_to_the_value_that_failed_is_undone():
    bound = MemoryBindings()
    bound.put("k", "a", ttl_s=60)
    bound.drop("k", "b")
    assert await bound.get("k") == "a"
    bound.drop("k", "a")
    assert await bound.get("k") is None


class Counted(MemoryStore):
    """A store that counts what is written, and can be away."""

    def __init__(self) -> None:
        super().__init__()
        self.written = 0
        self.away = False
        self.gates: list[asyncio.Event] = []
        self.get_gates: list[asyncio.Event] = []

    async def set(self, *arguments, **fields) -> bool:
        self.written += 1
        if self.gates:
            await self.gates.pop(0).wait()
        if self.away:
            raise StateUnavailable("away")
        return await super().set(*arguments, **fields)

    async def get(self, namespace: str, key: str) -> bytes | None:
        if self.away:
            raise StateUnavailable("away")
        found = await super().get(namespace, key)
        if self.get_gates:
            await self.get_gates.pop(0).wait()
        return found


class Pair:
    """Two processes over one store."""

    def __init__(self) -> None:
        self.store, self.clock, self.tasks = Counted(), Clock(), TaskGroup("test")
        self.one, self.two = (SharedBindings(self.store, "sessions", self.tasks, clock=self.clock) for _ in range(2))


@pytest.fixture
async def pair() -> Pair:
    return Pair()


async def test_what_one_process_binds_the_other_finds(pair):
    assert await pair.two.get("k") is None
    pair.one.put("k", "a", ttl_s=60)
    await pair.tasks.join()
    assert await pair.two.get("k") == "a"
    pair.one.drop("k", "a")
    await pair.tasks.join()
    pair.clock.now_s += HEARD_TTL_S
    assert (await pair.one.get("k"), await pair.two.get("k")) == (None, None)


async def test_prolonging_is_told_now_and_then_only(pair):
    for _ in range(10):
        pair.one.put("k", "a", ttl_s=60)
    assert not pair.one.is_empty
    await pair.tasks.join()
    assert pair.store.written == 1
    pair.clock.now_s += 16
    pair.one.put("k", "a", ttl_s=60)
    await pair.tasks.join()
    pair.one.put("k", "b", ttl_s=60)
    await pair.tasks.join()
    assert pair.store.written == 3


async def test_while_the_store_is_away_each_process_remembers_for_itself(pair):
    pair.store.away = True
    pair.one.put("k", "a", ttl_s=60)
    await pair.tasks.join()
    assert (await pair.one.get("k"), await pair.two.get("k")) == ("a", None)


async def test_a_process_follows_when_another_one_has_moved_what_it_uses_itself(pair):
    pair.one.put("k", "a", ttl_s=3600)
    await pair.tasks.join()
    assert await pair.two.get("k") == "a"
    pair.two.put("k", "b", ttl_s=3600)
    await pair.tasks.join()
    pair.one.put("k", "a", ttl_s=3600)  # used in between: it does not know better yet
    await pair.tasks.join()
    assert await pair.one.get("k", fresh=True) == "b"
    pair.two.put("k", "c", ttl_s=3600)
    await pair.tasks.join()
    pair.clock.now_s += HEARD_TTL_S
    assert await pair.one.get("k") == "c"


async def test_of_what_happens_to_one_key_the_last_is_what_others_find(pair):
    gates = pair.store.gates
    gates.extend([asyncio.Event(), asyncio.Event()])
    first, second = gates
    pair.one.put("k", "a", ttl_s=60)
    pair.one.drop("k", "a")
    pair.one.put("k", "b", ttl_s=60)
    second.set()  # the later write would be done first, if both were under way
    await asyncio.sleep(0)
    first.set()
    await pair.tasks.join()
    assert await pair.two.get("k") == "b"


async def test_what_another_process_bound_meanwhile_is_not_undone(pair):
    pair.one.put("k", "a", ttl_s=60)
    await pair.tasks.join()
    pair.two.put("k", "b", ttl_s=60)
    await pair.tasks.join()
    pair.one.drop("k", "a")
    await pair.tasks.join()
    assert await pair.one.get("k") == "b"


async def test_a_failure_undoes_a_binding_that_this_process_never_asked_for(pair):
    pair.one.put("k", "a", ttl_s=60)
    await pair.tasks.join()
    pair.two.drop("k", "a")
    await pair.tasks.join()
    assert await pair.two.get("k") is None


async def test_a_store_that_came_back_empty_is_told_again_and_takes_nothing_away(pair):
    pair.one.put("k", "a", ttl_s=3600)
    await pair.tasks.join()
    await pair.store.delete("sessions", "k")
    pair.clock.now_s += HEARD_TTL_S
    assert await pair.one.get("k") == "a"
    pair.one.put("k", "a", ttl_s=3600)
    await pair.tasks.join()
    assert await pair.two.get("k") == "a"


async def test_when_the_proxy_stops_nothing_is_left_to_write(pair):
    await pair.tasks.stop()
    pair.one.put("k", "a", ttl_s=60)
    assert await pair.one.get("k") == "a"


async def test_of_two_that_ask_at_once_the_second_hears_what_the_first_has_bound_meanwhile(pair):
    gate = asyncio.Event()
    pair.store.get_gates.append(gate)
    slow = asyncio.create_task(pair.one.get("k"))
    await asyncio.sleep(0)
    assert await pair.one.get("k") is None
    pair.one.put("k", "a", ttl_s=60)
    await pair.tasks.join()
    gate.set()
    async with asyncio.timeout(5):
        assert await slow == "a"
