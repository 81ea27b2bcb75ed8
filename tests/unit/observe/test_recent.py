"""The latest lines of the log in memory."""

from host.observe.recent import RecentLines


def test_the_latest_lines_come_back_oldest_first_with_their_times() -> None:
    recent = RecentLines(10)
    recent.add(1.0, ["a", "b\nsecond line of b"])
    recent.add(2.0, ["c \x1b[0m \x00 ü"])
    assert list(recent) == [(1.0, "a"), (1.0, "b\nsecond line of b"), (2.0, "c \x1b[0m \x00 ü")]
    assert len(recent) == 3


def test_a_batch_goes_when_there_are_enough_lines_without_it() -> None:
    recent = RecentLines(3)
    recent.add(1.0, ["a", "b"])
    recent.add(2.0, ["c", "d"])
    assert [line for _, line in recent] == ["a", "b", "c", "d"]
    recent.add(3.0, ["e"])
    assert [line for _, line in recent] == ["c", "d", "e"]
    recent.add(4.0, ["f", "g", "h", "i"])
    assert ([line for _, line in recent], len(recent)) == (["f", "g", "h", "i"], 4)


def test_half_a_character_costs_that_character_only() -> None:
    recent = RecentLines(3)
    recent.add(1.0, ["a\ud800b", "c"])
    assert [line for _, line in recent] == ["a?b", "c"]


def test_forgotten_lines_are_gone() -> None:
    recent = RecentLines(3)
    recent.add(1.0, ["a"])
    recent.clear()
    assert (list(recent), len(recent)) == ([], 0)
