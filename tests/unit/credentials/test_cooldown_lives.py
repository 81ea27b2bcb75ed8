"""Random lives of cooldowns that are kept over restarts, and of those that several nodes share.

Clocks are set, servers and disks fail, nodes fall silent. No block may last longer than a failure said, none may be
forgotten, and nodes that can talk to each other agree. `make lives` runs more and longer ones.
"""

import asyncio
import os
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from host.credentials.classify import classify
from host.credentials.cooldown import ALL_MODELS, CooldownBook, CoolState, cause_of
from host.credentials.keeper import CooldownKeeper
from host.credentials.records import Credential
from host.registry.models import canonical
from host.tasks import TaskGroup
from pluginabi.errors import ErrorBody
from tests.support.cooldown_nodes import Counting, Node, World
from tests.support.pipeline import Clock

LIVES = int(os.environ.get("LIVES", "0"))
NAMES, MODELS = ("a", "b"), ("m", "n")
ERRORS = {
    "limit": ErrorBody(http_status=429),
    "limit with a time": ErrorBody(http_status=429, retry_after_ms=30_000),
    "limit with a long time": ErrorBody(http_status=429, retry_after_ms=400_000),
    "limit of the account": ErrorBody(http_status=429, scope="credential", retry_after_ms=50_000),
    "refused": ErrorBody(http_status=401),
    "busy": ErrorBody(http_status=503),
}
SECONDS = st.sampled_from([0.5, 1.0, 7.0, 30.0, 60.0, 1800.0])
STEPS = st.sampled_from([-86_400.0, -3600.0, -5.0, 5.0, 3600.0, 86_400.0])
"""By how much a wall clock is set."""
NEAR_S = 0.05
Key = tuple[str, str]


class Life(RuleBasedStateMachine):
    """With an event loop that runs while a rule does."""

    def __init__(self) -> None:
        super().__init__()
        self.runner = asyncio.Runner()
        self.tasks = TaskGroup("life")

    def run(self, work: Any) -> Any:
        async def bounded() -> Any:
            async with asyncio.timeout(10):
                return await work

        return self.runner.run(bounded())

    def teardown(self) -> None:
        self.run(self.tasks.stop())
        self.runner.close()


def blocks(book: CooldownBook) -> dict[Key, CoolState]:
    """Every block of a book that has not ended."""
    return {
        (name, state.model): state
        for name, states in book.all_states()
        for state in states.values()
        if state.until_s > book.clock()
    }


class SharedLife(Life):
    """Two nodes and a server, all on machines whose clocks are set together."""

    def __init__(self) -> None:
        super().__init__()
        self.world = World()
        self.nodes = [Node(self.world, self.tasks) for _ in range(2)]
        self.longest: dict[Key, float] = {}
        """When the last of all blocks that anybody ever set ends."""
        self.rest_s: dict[Key, float] = {}
        """The longest rest that anybody ever set."""
        self.blurred_until_s = 0.0
        """Who was away while the clocks were set reads times that mean another moment, until they have passed."""
        self.sure: dict[Key, float] = {}
        """Blocks against which nothing was said since."""

    async def settle(self) -> None:
        for node in self.nodes:
            await node.settle()

    def act(self, action: Any, *arguments: Any) -> None:
        async def acting() -> None:
            action(*arguments)
            await self.settle()

        self.run(acting())

    @rule(
        number=st.integers(0, 1),
        name=st.sampled_from(NAMES),
        model=st.sampled_from(MODELS),
        kind=st.sampled_from(sorted(ERRORS)),
    )
    def fail(self, number: int, name: str, model: str, kind: str) -> None:
        verdict, book = classify(ERRORS[kind]), self.nodes[number].book

        def failing() -> None:
            rest_s = book.failed(name, model, verdict, cause=cause_of(500, "c", "m"))
            key = (name, ALL_MODELS if verdict.whole_credential else model)
            end_s = self.world.now_s + rest_s
            self.longest[key] = max(end_s, self.longest.get(key, 0.0))
            self.rest_s[key] = max(rest_s, self.rest_s.get(key, 0.0))
            if self.all_there:
                self.sure[key] = end_s

        self.act(failing)

    @rule(number=st.integers(0, 1), name=st.sampled_from(NAMES), model=st.sampled_from(MODELS))
    def succeed(self, number: int, name: str, model: str) -> None:
        book = self.nodes[number].book
        self.doubt(name)
        self.act(lambda: book.succeeded(name, model, began_s=book.clock(), seen_s=book.clock()))

    @rule(number=st.integers(0, 1), name=st.sampled_from(NAMES))
    def reset(self, number: int, name: str) -> None:
        self.doubt(name)
        self.act(self.nodes[number].book.reset, name)

    def doubt(self, name: str) -> None:
        """Who is away does not hear of an end, which that of a later and shorter block may hide: there the credential
        rests as long as was told."""
        if not self.all_there:
            told = [end_s for key, end_s in self.longest.items() if key[0] == name]
            self.blurred_until_s = max(self.blurred_until_s, *told, 0.0)
        self.sure = {key: end_s for key, end_s in self.sure.items() if key[0] != name}

    @rule(seconds=SECONDS)
    def turn(self, seconds: float) -> None:
        self.world.now_s += seconds
        for node in self.nodes:
            self.act(node.book.tick)

    @rule(seconds=STEPS)
    def set_clock(self, seconds: float) -> None:
        """Whatever a node does next, it notices."""
        self.world.step_s += seconds
        if not self.all_there:
            # Two lengths: what is read at the last moment may rest as long as it was told to.
            self.blurred_until_s = self.world.now_s + 2 * max(self.rest_s.values(), default=0.0)
        for node in self.nodes:
            self.act(node.cooldowns.follow)

    @rule(number=st.integers(0, 1))
    def reload(self, number: int) -> None:
        self.act(self.nodes[number].cooldowns.follow)

    @rule(number=st.integers(0, 1))
    def go_or_come_back(self, number: int) -> None:
        node = self.nodes[number]
        self.sure.clear()
        if node.available:
            node.available = False
        else:
            self.run(node.comes_back())

    @property
    def all_there(self) -> bool:
        return all(node.available for node in self.nodes)

    @invariant()
    def no_block_lasts_longer_than_a_failure_said(self) -> None:
        for node in self.nodes:
            for key, state in blocks(node.book).items():
                left_s = state.until_s - node.book.clock()
                assert left_s <= self.rest_s[key] + NEAR_S
                assert left_s <= self.longest[key] - self.world.now_s + NEAR_S or self.is_blurred

    @property
    def is_blurred(self) -> bool:
        return self.world.now_s < self.blurred_until_s

    @invariant()
    @precondition(lambda self: self.all_there and not self.is_blurred)
    def who_can_talk_agrees_and_forgets_nothing(self) -> None:
        one, two = (
            {key: (state.until_s - node.book.clock(), state.reason) for key, state in blocks(node.book).items()}
            for node in self.nodes
        )
        for key in {*one, *two}:
            left, right = one.get(key, (0.0, "")), two.get(key, (0.0, ""))
            assert abs(left[0] - right[0]) <= NEAR_S
            assert left[1] == right[1] or min(left[0], right[0]) <= NEAR_S
        for key, end_s in self.sure.items():
            assert one.get(key, (0.0, ""))[0] >= end_s - self.world.now_s - NEAR_S


class KeptLife(Life):
    """One process after the other, with a store that may fail, on a machine whose clock may be set."""

    def __init__(self) -> None:
        super().__init__()
        self.now_s = 1_000_000.0
        self.step_s = 0.0
        self.store = Counting()
        self.rest_s: dict[Key, float] = {}
        """How long the block was when it was last set."""
        self.start()

    def start(self) -> None:
        self.clock = Clock()
        self.book = CooldownBook(clock=self.clock)
        self.keeper = CooldownKeeper(
            self.book,
            usable=lambda name: Credential(id=name, provider="p", label="", source_kind="file", path=f"{name}.json"),
            tasks=self.tasks,
            canonical=canonical,
            wall_clock=lambda: self.now_s + self.step_s,
        )
        self.run(self.keeper.open([self.store]))

    def act(self, action: Any, *arguments: Any) -> None:
        async def acting() -> None:
            action(*arguments)
            await self.keeper.flush()

        self.run(acting())

    @rule(name=st.sampled_from(NAMES), model=st.sampled_from(MODELS), kind=st.sampled_from(sorted(ERRORS)))
    def fail(self, name: str, model: str, kind: str) -> None:
        verdict = classify(ERRORS[kind])

        def failing() -> None:
            rest_s = self.book.failed(name, model, verdict, cause=cause_of(500, "c", "m"))
            key = (name, ALL_MODELS if verdict.whole_credential else model)
            self.rest_s[key] = max(rest_s, self.rest_s.get(key, 0.0))

        self.act(failing)

    @rule(name=st.sampled_from(NAMES), model=st.sampled_from(MODELS))
    def succeed(self, name: str, model: str) -> None:
        self.act(lambda: self.book.succeeded(name, model, began_s=self.clock(), seen_s=self.clock()))

    @rule(name=st.sampled_from(NAMES))
    def reset(self, name: str) -> None:
        self.act(self.book.reset, name)

    @rule(seconds=SECONDS)
    def turn(self, seconds: float) -> None:
        self.now_s += seconds
        self.clock.now_s += seconds
        self.act(self.book.tick)

    @rule(seconds=STEPS)
    def set_clock(self, seconds: float) -> None:
        self.step_s += seconds

    @rule(seconds=st.sampled_from([0.0, 0.0, 60.0]))
    def disk_is_full_for_a_while(self, seconds: float) -> None:
        self.store.error = OSError("disk full")
        self.act(self.book.failed, "a", "m", classify(ERRORS["busy"]))
        self.rest_s["a", "m"] = max(60.0, self.rest_s.get(("a", "m"), 0.0))
        self.turn(seconds)
        self.store.error = None

    @rule(away_s=st.sampled_from([0.0, 10.0, 100.0]), set_s=st.sampled_from([0.0, 0.0, -3600.0, 3600.0]))
    def restart(self, away_s: float, set_s: float) -> None:
        """What is known afterwards is what was known before, less the time between."""
        self.run(self.keeper.stop())
        before = {key: (it.until_s - self.clock(), it.reason, it.exact) for key, it in blocks(self.book).items()}
        self.now_s += away_s
        self.step_s += set_s
        self.start()
        after = {key: (it.until_s - self.clock(), it.reason, it.exact) for key, it in blocks(self.book).items()}
        assert after.keys() <= before.keys()
        for key, (left_s, *facts) in before.items():
            found_s = after[key][0] if key in after else 0.0
            due_s = max(0.0, left_s - away_s)
            if not set_s:
                assert abs(found_s - due_s) <= NEAR_S
            assert found_s <= (due_s if set_s >= 0 else self.rest_s[key]) + NEAR_S
            assert key not in after or facts == list(after[key][1:])

    @invariant()
    def what_is_stored_is_what_is_known(self) -> None:
        known = {key for key, state in blocks(self.book).items()}
        stored = {(name, record.model) for name, found in self.store.kept.items() for record in found.records}
        if self.store.error is None and not self.keeper._unsaved:
            assert known <= stored

    def teardown(self) -> None:
        self.run(self.keeper.stop())
        super().teardown()


TestSharedLife = SharedLife.TestCase
TestKeptLife = KeptLife.TestCase
TestSharedLife.settings = TestKeptLife.settings = settings(
    settings.default, max_examples=LIVES or 60, stateful_step_count=80 if LIVES else 30, deadline=None
)
