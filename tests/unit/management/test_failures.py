"""Who is banned, and for how long."""

import pytest

from host.management.failures import BAN_S, IDLE_S, FailureTable


class Clock:
    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


def fail(table: FailureTable, address: str, times: int) -> None:
    for _ in range(times):
        table.failed(address)


def test_J1_the_fifth_failure_bans_for_half_an_hour() -> None:
    clock = Clock()
    table = FailureTable(clock=clock)
    fail(table, "1.2.3.4", 4)
    assert table.banned_for_s("1.2.3.4") == 0
    table.failed("1.2.3.4")
    assert table.banned_for_s("1.2.3.4") == BAN_S == 1800
    assert table.banned_for_s("1.2.3.5") == 0
    clock.now_s += BAN_S
    assert table.banned_for_s("1.2.3.4") == 0
    fail(table, "1.2.3.4", 4)
    assert table.banned_for_s("1.2.3.4") == 0


def test_J2_a_success_forgets_the_failures_before_it() -> None:
    table = FailureTable(clock=Clock())
    fail(table, "1.2.3.4", 4)
    table.succeeded("1.2.3.4")
    fail(table, "1.2.3.4", 4)
    assert table.banned_for_s("1.2.3.4") == 0


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("2001:db8::1", "2001:db8::ffff:1", True),
        ("2001:db8::1", "2001:db8:0:1::1", False),
        ("::ffff:1.2.3.4", "1.2.3.4", True),
        ("", "127.0.0.1", False),
    ],
)
def test_an_ipv6_client_is_its_network_and_a_mapped_address_is_the_address(one: str, other: str, same: bool) -> None:
    table = FailureTable(clock=Clock())
    fail(table, one, 5)
    assert (table.banned_for_s(other) > 0) is same


def test_the_table_is_bounded_and_a_full_one_keeps_those_who_are_banned() -> None:
    clock = Clock()
    table = FailureTable(clock=clock, max_addresses=3)
    fail(table, "10.0.0.1", 5)
    for number in range(2, 50):
        table.failed(f"10.0.0.{number}")
    assert len(table) == 3
    assert table.banned_for_s("10.0.0.1") > 0


def test_an_address_that_is_quiet_for_two_hours_is_forgotten() -> None:
    clock = Clock()
    table = FailureTable(clock=clock)
    fail(table, "1.2.3.4", 4)
    clock.now_s += IDLE_S
    table.failed("5.6.7.8")
    assert len(table) == 1
