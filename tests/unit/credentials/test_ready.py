"""Who is free and when the first of the others is back, against looking at everybody."""

import random

import pytest

from host.credentials.classify import classify
from host.credentials.cooldown import CooldownBook
from host.credentials.pool import CredentialPool, Exhausted, Health
from host.credentials.ready import Members, Ready
from host.credentials.records import Credential
from host.credentials.retry import Search
from pluginabi.errors import ErrorBody
from tests.support.pipeline import Clock


def test_the_first_recovery_is_that_of_looking_at_everybody_whatever_happens_meanwhile():
    dice, clock = random.Random(11), Clock()
    book = CooldownBook(clock=clock)
    members = Members([Credential(id=f"c{number:02}", provider="p", label="") for number in range(20)])
    ready = Ready(members, [(book.shelf("m"), book.shelf("n"))], book)
    compared = 0
    for _ in range(4000):
        name, model = dice.choice(members.ids), dice.choice("mn")
        match dice.randrange(6):
            case 0:
                book.reset(name)
            case 1:
                clock.now_s += dice.random() * 3
            case 2:
                book.failed(name, model, classify(ErrorBody(http_status=401, scope=dice.choice(["credential", None]))))
            case _:
                after_ms = dice.randrange(1, 20) * 1000
                book.failed(name, model, classify(ErrorBody(http_status=429, retry_after_ms=after_ms)))
        book.tick()
        if dice.random() < 0.3:
            continue  # several changes may lie between two pictures
        ready.sync()
        without = set(dice.sample(members.ids, dice.randrange(4)))
        expected = ready.recovery_of(lambda it, without=without: it.id not in without)
        assert ready.recovery(without=without) == expected
        compared += expected is not None
    assert compared > 1000


def test_why_everybody_rests_is_known_however_blocks_of_one_member_overtake_each_other():
    """A limit of the whole credential, a failure of one model: whichever ends last is why it rests."""
    dice, clock, found = random.Random(5), Clock(), set()
    book = CooldownBook(clock=clock)
    members = Members([Credential(id=f"c{number}", provider="p", label="") for number in range(3)])
    ready = Ready(members, [(book.shelf("m"), book.shelf("n"))], book)
    for _ in range(3000):
        status, scope = dice.choice([429, 429, 503]), dice.choice(["credential", None])
        error = ErrorBody(http_status=status, retry_after_ms=dice.randrange(1, 20) * 1000, scope=scope)
        book.failed(dice.choice(members.ids), dice.choice("mn"), classify(error))
        clock.now_s += dice.random()
        book.tick()
        ready.sync()
        expected = ready.recovery_of(lambda _: True)
        assert ready.recovery() == expected
        found.add(expected[1] if expected is not None else None)
    assert found == {True, False, None}


def test_the_free_ones_can_be_gone_through_from_any_place():
    clock = Clock()
    book = CooldownBook(clock=clock)
    members = Members([Credential(id=f"c{number}", provider="p", label="") for number in range(8)])
    ready = Ready(members, [(book.shelf("m"),)], book)
    for name in ("c0", "c3", "c4", "c7"):
        book.failed(name, "m", classify(ErrorBody(http_status=429)))
    ready.sync()
    assert [list(ready.free(start)) for start in range(9)] == [
        [1, 2, 5, 6], [1, 2, 5, 6], [2, 5, 6], [5, 6], [5, 6], [5, 6], [6], [], []
    ]  # fmt: skip


@pytest.mark.parametrize("blocked", [(), (0,), (3, 4), (0, 1, 2, 3, 4, 5, 6), (7,), (1, 3, 5, 7), tuple(range(8))])
def test_the_first_ids_are_those_of_the_free_ones(blocked):
    book = CooldownBook(clock=Clock())
    members = Members([Credential(id=f"c{number}", provider="p", label="") for number in range(8)])
    ready = Ready(members, [(book.shelf("m"),)], book)
    for number in blocked:
        book.failed(f"c{number}", "m", classify(ErrorBody(http_status=429)))
    ready.sync()
    free = [members.ids[position] for position in ready.free()]
    assert [list(ready.first_ids(count)) for count in range(10)] == [free[:count] for count in range(10)]


def test_while_everybody_rests_a_pick_looks_at_a_few_only_however_often_rests_grow(monkeypatch):
    looked: list[int] = []
    block_at = Ready.block_at
    monkeypatch.setattr(Ready, "block_at", lambda self, position: looked.append(position) or block_at(self, position))
    clock, dice = Clock(), random.Random(3)
    book = CooldownBook(clock=clock)
    members = Members([Credential(id=f"c{number:04}", provider="p", label="") for number in range(2000)])
    pool = CredentialPool(members.credentials, health=Health(book=book))
    tier = pool.tier(members, [("m",)])
    for name in members.ids:
        book.failed(name, "m", classify(ErrorBody(http_status=429, retry_after_ms=60_000)))
    search = Search(pool.policy)
    assert pool.choose([tier], search, strategy="round-robin", cursor="c") == Exhausted("cooling", 60.0)
    looked.clear()
    for number in range(1, 200):
        name = dice.choice(members.ids)
        book.failed(name, "m", classify(ErrorBody(http_status=429, retry_after_ms=60_000 + number)))
        search.note_tried(name)
        assert isinstance(pool.choose([tier], search, strategy="round-robin", cursor="c"), Exhausted)
    assert len(looked) < 2000


@pytest.mark.parametrize("quiet", [0.5, 0.97, 0.999])
def test_who_is_free_is_known_however_many_changes_lie_between_two_looks(quiet):
    dice, clock = random.Random(5), Clock()
    book = CooldownBook(clock=clock)
    members = Members([Credential(id=f"c{number:02}", provider="p", label="") for number in range(60)])
    models = (("m",), ("n",), ("m", "n"))
    pictures = [Ready(members, [tuple(book.shelf(name) for name in names)], book) for names in models]
    looks = 0
    for _ in range(8000):
        name = dice.choice(members.ids)
        match dice.randrange(5):
            case 0:
                book.reset(name)
            case 1:
                clock.now_s += dice.random()
            case 2:
                book.failed(name, dice.choice("mn"), classify(ErrorBody(http_status=429, retry_after_ms=9_000)))
            case _:
                book.failed(name, "m", classify(ErrorBody(http_status=429, retry_after_ms=7_000, scope="credential")))
        if dice.random() < quiet:
            continue
        looks += 1
        book.tick()
        which = dice.randrange(len(models))
        ready, names = pictures[which], models[which]
        ready.sync()
        expected = [
            position for position, it in enumerate(members.ids) if any(book.block(it, name) is None for name in names)
        ]
        assert list(ready.free()) == expected
        assert (ready.count, [ready.at(number) for number in range(ready.count)]) == (len(expected), expected)
    assert looks > 3
