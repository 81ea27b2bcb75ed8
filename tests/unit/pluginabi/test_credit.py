"""The arithmetic of credit and the timer of many deadlines, without a session."""

import asyncio

from hypothesis import given
from hypothesis import strategies as st

from pluginabi.credit import Returns, Window
from pluginabi.deadlines import Deadlines
from pluginabi.lag import LagMeter
from pluginabi.limits import STREAM_WINDOW_BYTES, STREAM_WINDOW_ITEMS
from tests.support.wire import within

SIZES = st.lists(st.integers(min_value=1, max_value=3 * STREAM_WINDOW_BYTES), max_size=300)


@given(SIZES)
def test_a_producer_and_a_consumer_never_block_each_other_for_ever(sizes: list[int]) -> None:
    producer, returns = Window(), Returns()
    for size in sizes:
        assert producer.is_open
        producer.spend(size)
        if (due := returns.took(size)) is not None:
            producer.grant(*due)


@given(SIZES)
def test_nothing_is_lost_between_spending_and_returning(sizes: list[int]) -> None:
    producer, returns = Window(), Returns()
    for size in sizes:
        producer.spend(size)
        if (due := returns.took(size)) is not None:
            producer.grant(*due)
    assert STREAM_WINDOW_ITEMS - producer.items == returns._items < STREAM_WINDOW_ITEMS // 2
    assert STREAM_WINDOW_BYTES - producer.bytes == returns._bytes < STREAM_WINDOW_BYTES // 2


def test_one_item_may_overshoot_but_not_two() -> None:
    window = Window()
    window.spend(10 * STREAM_WINDOW_BYTES)
    assert not window.is_open
    window.grant(1, 10 * STREAM_WINDOW_BYTES)
    assert window.is_open


def test_negative_credit_takes_nothing_away() -> None:
    window = Window()
    window.grant(-5, -5)
    assert (window.items, window.bytes) == (STREAM_WINDOW_ITEMS, STREAM_WINDOW_BYTES)


async def test_deadlines_expire_in_their_order_and_only_for_what_is_alive() -> None:
    expired: list[int] = []
    last = asyncio.Event()
    alive = {1, 2, 3, 4}

    def on_expiry(call_id: int) -> None:
        expired.append(call_id)
        alive.discard(call_id)
        if call_id == 1:
            last.set()

    deadlines = Deadlines(asyncio.get_running_loop(), alive, on_expiry)
    for call_id, timeout_ms in ((1, 300), (2, 1), (3, 200), (4, 100)):
        deadlines.add(call_id, timeout_ms)
    alive.discard(3)
    await within(last.wait())
    assert expired == [2, 4, 1]


async def test_deadlines_of_finished_calls_do_not_pile_up() -> None:
    alive: set[int] = set()
    deadlines = Deadlines(asyncio.get_running_loop(), alive, lambda _: None)
    for call_id in range(10_000):
        alive.add(call_id)
        deadlines.add(call_id, 600_000)
        alive.discard(call_id)
    assert len(deadlines._due) < 1000
    deadlines.stop()


async def test_a_new_deadline_may_be_the_earliest() -> None:
    expired: asyncio.Queue[int] = asyncio.Queue()
    deadlines = Deadlines(asyncio.get_running_loop(), {1, 2}, expired.put_nowait)
    deadlines.add(1, 600_000)
    deadlines.add(2, 1)
    assert await within(expired.get()) == 2
    deadlines.stop()


class FakeLoop:
    """A clock that tests move, with timers that run when they say so."""

    def __init__(self) -> None:
        self.now_s = 100.0
        self.timers: list[tuple[float, object]] = []

    def time(self) -> float:
        return self.now_s

    def call_at(self, when_s: float, callback: object) -> asyncio.Handle:
        self.timers.append((when_s, callback))
        return asyncio.Handle(lambda: None, (), asyncio.get_running_loop())


async def test_the_lag_is_how_late_the_timer_ran_since_the_last_question() -> None:
    loop = FakeLoop()
    busy = True
    meter = LagMeter(loop, lambda: busy)  # type: ignore[arg-type]
    meter.work_began()
    meter.work_began()
    [(due_s, tick)] = loop.timers
    loop.now_s = due_s + 0.25
    assert callable(tick)
    tick()
    assert meter.worst_ms() == 250.0
    assert meter.worst_ms() == 0.0
    busy = False
    _, again = loop.timers[1]
    assert callable(again)
    again()
    assert len(loop.timers) == 2, "an idle plugin is not woken"
    meter.work_began()
    assert len(loop.timers) == 3
    loop.now_s = loop.timers[2][0] + 3
    assert meter.worst_ms() == 3000.0, "a loop that hangs right now counts"
    meter.stop()
