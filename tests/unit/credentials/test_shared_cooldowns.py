"""Cooldowns of several nodes that talk to each other: who is right when they disagree, and what is never sent."""

from collections.abc import AsyncIterator
from itertools import permutations
from typing import Any

import msgspec
import pytest

from host.credentials.classify import Verdict
from host.credentials.cooldown import NO_CAUSE
from host.credentials.shared_cooldowns import CooldownRow, merged
from host.state.memory import MemoryStore
from host.tasks import TaskGroup
from tests.support.cooldown_nodes import Node, World

LIMIT = Verdict(rotate=True, reason="quota", cooldown_s=100.0, exact=True, quota=True)
GUESS = Verdict(rotate=True, reason="transient", cooldown_s=60.0)


@pytest.fixture
async def tasks() -> AsyncIterator[TaskGroup]:
    group = TaskGroup("test")
    yield group
    await group.stop()


@pytest.fixture
def world() -> World:
    return World()


@pytest.fixture
def pair(world: World, tasks: TaskGroup) -> tuple[Node, Node]:
    return Node(world, tasks), Node(world, tasks)


def row(at_s: float, until_s: float, **fields: Any) -> CooldownRow:
    return CooldownRow(**{"credential": "a", "model": "m", "reason": "quota", **fields}, at_s=at_s, until_s=until_s)


@pytest.mark.parametrize(
    ("rows", "until_s", "ended"),
    [
        ([row(1, 50), row(2, 40)], 50, False),
        ([row(1, 50), row(2, 40, exact=True)], 40, False),
        ([row(1, 50, exact=True), row(2, 40)], 50, False),
        ([row(1, 50, reason="unauthorized"), row(2, 40, exact=True)], 50, False),
        ([row(1, 50), row(2, 50, ended=True)], 50, True),
        ([row(2, 50), row(2, 50, ended=True)], 50, True),
        ([row(2, 50), row(2, 40, ended=True)], 50, False),
        ([row(1, 50), row(2, 50, ended=True), row(3, 60)], 60, False),
        ([row(1, 50), row(2, 50, ended=True), row(3, 40, cleared_s=2)], 40, False),
    ],
)
def test_what_several_nodes_say_means_the_same_in_whichever_order_it_arrives(
    rows: list[CooldownRow], until_s: float, ended: bool
):
    for order in permutations(rows):
        found = order[0]
        for other in order[1:]:
            found = merged(found, other)
        assert (found.until_s, found.ended) == (until_s, ended)


async def test_a_block_and_its_end_reach_the_other_node_and_nothing_is_echoed(pair: tuple[Node, Node]):
    one, two = pair
    one.book.failed("a", "m", LIMIT)
    await one.settle()
    assert two.rest_s() == 100.0
    two.world.now_s += 1
    two.book.succeeded("a", "m", began_s=two.book.clock(), seen_s=two.book.clock())
    await two.settle()
    assert one.rest_s() == two.rest_s() == 0.0
    assert (len(one.sent), len(two.sent)) == (1, 1)


async def test_a_block_that_ends_by_itself_is_not_told(pair: tuple[Node, Node], world: World):
    one, two = pair
    one.book.failed("a", "m", GUESS)
    await one.settle()
    world.now_s += 61
    for node in pair:
        node.book.tick()
        await node.settle()
    assert (one.rest_s(), two.rest_s(), len(one.sent), len(two.sent)) == (0.0, 0.0, 1, 0)
    assert await world.store.items("cooldown") == {}


async def test_after_the_server_was_away_the_later_evidence_wins_on_both_sides(pair: tuple[Node, Node], world: World):
    one, two = pair
    one.book.failed("a", "m", LIMIT)
    one.book.failed("b", "m", LIMIT)
    await one.settle()
    one.available = two.available = False
    world.now_s += 1
    two.book.forget("a", "m")
    one.book.failed("b", "m2", GUESS)
    await one.settle()
    assert (one.rest_s("a"), two.rest_s("a"), two.rest_s("b", "m2")) == (99.0, 0.0, 0.0)
    world.store = MemoryStore(clock=lambda: world.now_s)
    for node in pair:
        node.store = world.store
    await two.comes_back()
    await one.comes_back()
    assert (one.rest_s("a"), two.rest_s("a")) == (0.0, 0.0)
    assert one.rest_s("b", "m2") == two.rest_s("b", "m2") == 60.0
    assert one.rest_s("b") == two.rest_s("b") == 99.0


async def test_what_was_stored_and_could_not_be_told_is_told_when_the_server_can_be_reached_again(
    pair: tuple[Node, Node], monkeypatch: pytest.MonkeyPatch
):
    one, two = pair

    async def lost(topic: str, message: bytes) -> bool:
        one.available = False
        return False

    with monkeypatch.context() as broken:
        broken.setattr(one, "publish", lost)
        one.book.failed("a", "m", LIMIT)
        await one.settle()
    assert two.rest_s() == 0
    await one.comes_back()
    assert two.rest_s() == 100
    told = len(one.sent)
    await one.comes_back()
    assert len(one.sent) == told


async def test_a_node_that_comes_later_learns_of_a_credential_when_it_has_it(
    pair: tuple[Node, Node], world: World, tasks: TaskGroup
):
    one, _ = pair
    one.book.failed("c", "m", LIMIT)
    one.known.add("c")
    await one.settle()
    late = Node(world, tasks)
    await late.comes_back()
    assert late.rest_s("c") == 0.0
    late.known.add("c")
    late.cooldowns.follow()
    assert late.rest_s("c") == 100.0
    # It goes again here: that says nothing about how it does elsewhere.
    late.known.remove("c")
    late.book.reset("c")
    await late.settle()
    assert one.rest_s("c") == 100.0


async def test_a_node_whose_clock_is_behind_can_end_what_another_one_set(world: World, tasks: TaskGroup):
    ahead, behind = Node(world, tasks, ahead_s=2.0), Node(world, tasks)
    ahead.book.failed("a", "m", LIMIT)
    await ahead.settle()
    behind.book.forget("a", "m")
    await behind.settle()
    assert ahead.rest_s() == 0.0
    behind.book.failed("a", "m", GUESS)
    await behind.settle()
    assert ahead.rest_s() == 58.0


def untrue(at_s: float, until_s: float, credential: bytes = b"abc") -> bytes:
    encoded = msgspec.msgpack.encode(row(at_s, until_s, credential="abc"))
    assert encoded.count(b"abc") == 1
    return encoded.replace(b"abc", credential)


@pytest.mark.parametrize(
    "what",
    [
        b"\xc1 what",
        untrue(1e6, 2e6, b"a\xff\xfe"),
        untrue(float("nan"), 2e6),
        untrue(1e6, float("nan")),
        untrue(1e6, float("inf")),
    ],
)
async def test_what_cannot_be_read_or_meant_changes_nothing(pair: tuple[Node, Node], world: World, what: bytes):
    one, two = pair
    two.known.add("abc")
    await one.publish("cooldown", b"\x91" + what)
    await world.store.set("cooldown", "x", what)
    await two.comes_back()
    assert two.rest_s("abc") == 0.0
    one.book.failed("a", "m", LIMIT)
    await one.settle()
    assert two.rest_s() == 100.0


@pytest.mark.parametrize("step_s", [-3600.0, 3600.0])
async def test_a_wall_clock_that_is_set_changes_no_block(pair: tuple[Node, Node], world: World, step_s: float):
    one, two = pair
    one.book.failed("a", "m", LIMIT)
    await one.settle()
    world.step_s += step_s
    for node in pair:
        node.cooldowns.follow()
        await node.settle()
        await node.comes_back()
    assert (one.rest_s(), two.rest_s()) == (100.0, 100.0)
    world.now_s += 101
    for node in pair:
        node.book.tick()
        node.cooldowns.follow()
        await node.comes_back()
    assert (one.rest_s(), two.rest_s()) == (0.0, 0.0)
    two.book.failed("a", "m", GUESS)
    await two.settle()
    assert one.rest_s() == 60.0


@pytest.mark.parametrize("step_s", [-3600.0, 3600.0])
async def test_a_node_hears_how_long_a_block_lasts_though_the_clock_was_set_since_it_heard_last(
    pair: tuple[Node, Node], world: World, step_s: float
):
    one, two = pair
    one.book.failed("a", "m", LIMIT)
    await one.settle()
    world.step_s += step_s
    world.now_s += 70
    two.book.failed("a", "m", GUESS)
    two.book.failed("b", "m", GUESS)
    await two.settle()
    assert (one.rest_s(), two.rest_s(), one.rest_s("b")) == (60.0, 60.0, 60.0)


SHORT = Verdict(rotate=True, reason="transient", cooldown_s=20.0)


@pytest.mark.parametrize("away_s", [10.0, 50.0], ids=["the shorter one lasts", "the shorter one has ended"])
@pytest.mark.parametrize("how", ["ended", "corrected"])
async def test_a_node_that_was_cut_off_drops_a_block_that_others_have_replaced_with_a_shorter_one(
    pair: tuple[Node, Node], world: World, tasks: TaskGroup, away_s: float, how: str
):
    one, two = pair
    two.book.failed("a", "m", LIMIT if how == "ended" else GUESS)
    await two.settle()
    one.available = False
    world.now_s += 1
    if how == "ended":
        two.book.succeeded("a", "m", began_s=two.book.clock(), seen_s=two.book.clock())
        await two.settle()
        world.now_s += 1
        two.book.failed("a", "m", SHORT)
    else:
        two.book.failed("a", "m", Verdict(rotate=True, reason="transient", cooldown_s=20.0, exact=True))
    await two.settle()
    assert (one.rest_s() > 50, two.rest_s()) == (True, 20.0)
    world.now_s += away_s
    for node in pair:
        node.book.tick()
    await one.comes_back()
    await two.settle()
    assert one.rest_s() == two.rest_s() == max(0.0, 20.0 - away_s)
    # Nor is it told to those who come later, or by those who were there.
    late = Node(world, tasks)
    await late.comes_back()
    two.cooldowns.follow()
    await two.settle()
    assert late.rest_s() == two.rest_s() == max(0.0, 20.0 - away_s)
    world.now_s += 101
    for node in (*pair, late):
        node.book.tick()
        await node.comes_back()
    assert await world.store.items("cooldown") == {}


@pytest.mark.parametrize("first", ["the file", "the server", "both at once"])
async def test_what_an_earlier_process_left_in_a_file_is_no_news_to_those_who_know_that_it_is_over(
    pair: tuple[Node, Node], world: World, tasks: TaskGroup, first: str
):
    one, two = pair
    one.book.failed("a", "m", LIMIT)
    since_s = one.book.clock()
    await one.settle()
    one.available = False
    world.now_s += 5
    two.book.forget("a", "m")
    await two.settle()
    world.now_s += 5
    late = Node(world, tasks)
    left = Verdict(rotate=True, reason="quota", cooldown_s=90.0, exact=True, quota=True)
    late.available = first == "both at once"
    if first == "the server":
        await late.comes_back()
    if first == "both at once":
        late.reads()
    late.book.restore("a", "m", left, since_s=since_s, level=0, cause=NO_CAUSE)
    await late.settle()
    if first == "the file":
        await late.comes_back()
    await two.comes_back()
    assert (late.rest_s(), two.rest_s()) == (0.0, 0.0)
    # What nobody knows is told.
    late.book.restore("b", "m", left, since_s=since_s, level=0, cause=NO_CAUSE)
    await late.settle()
    assert two.rest_s("b") == 90.0
