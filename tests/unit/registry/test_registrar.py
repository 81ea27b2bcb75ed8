"""Asking about the models of credentials: how many at once, what is kept, and when it is published."""

import asyncio
from collections.abc import Callable, Sequence

import pytest

from host.credentials.records import Credential
from host.registry.groups import Infos
from host.registry.registrar import MAX_RETRY_S, RETRY_S, Question, Registrar
from host.tasks import TaskGroup
from pluginabi.payloads.common import ModelInfo


def credential(name: str, provider: str = "gem", **fields) -> Credential:
    return Credential(**{"id": name, "provider": provider, "label": name, "source_kind": "file", **fields})


class Desk:
    """A registrar over a plugin that answers when it is told to."""

    def __init__(self, *, publish_every_s: float = 3600) -> None:
        self.listed: dict[str, Infos] = {}
        self.answers: dict[str, Sequence[str] | Exception | None] = {}
        self.asked: list[str] = []
        self.running = self.most = self.published = 0
        self.awaited = 0
        self.reached = asyncio.Event()
        self.go_on = asyncio.Event()
        self.go_on.set()
        self.tasks = TaskGroup("test")
        self.waits: list[tuple[float, Callable[[], None]]] = []
        """What is to be done later, and when."""
        self.registrar = Registrar(
            self.listed,
            self.ask,
            publish=self.publish,
            tasks=self.tasks,
            publish_every_s=publish_every_s,
            later=lambda wait_s, action: self.waits.append((wait_s, action)),
        )

    async def ask(self, it: Credential) -> Sequence[ModelInfo] | None:
        self.asked.append(it.id)
        self.running += 1
        self.most = max(self.most, self.running)
        if self.running == self.awaited:
            self.reached.set()
        try:
            await self.go_on.wait()
        finally:
            self.running -= 1
        answer = self.answers.get(it.id, ["m"])
        if isinstance(answer, Exception):
            raise answer
        return None if answer is None else [ModelInfo(id=name) for name in answer]

    def publish(self) -> None:
        self.published += 1

    def follow(self, *credentials: Credential, why: object = 1) -> bool:
        return self.registrar.follow([Question(it, (it.provider, why)) for it in credentials])

    async def reach(self, running: int) -> None:
        """Wait until so many are being asked."""
        self.awaited = running
        async with asyncio.timeout(5):
            await self.reached.wait()

    async def done(self) -> None:
        async with asyncio.timeout(5):
            await self.tasks.join()

    async def later(self) -> float:
        """The time has come for what was put off; after how many seconds."""
        [(wait_s, action)] = self.waits
        self.waits.clear()
        action()
        await self.done()
        return wait_s

    def names(self) -> dict[str, list[str]]:
        return {credential_id: [info.id for info in infos] for credential_id, infos in self.listed.items()}


@pytest.fixture
async def desk() -> Desk:
    return Desk()


async def test_everybody_is_asked_once_and_the_result_is_published_once(desk):
    credentials = [credential(name) for name in "abc"]
    desk.follow(*credentials)
    await desk.done()
    desk.follow(*credentials)
    await desk.done()
    assert (desk.asked, desk.published) == (["a", "b", "c"], 1)
    assert desk.names() == {"a": ["m"], "b": ["m"], "c": ["m"]}
    assert desk.listed["a"] is desk.listed["b"]


async def test_configured_keys_come_first(desk):
    desk.follow(credential("file"), credential("key", source_kind="config"))
    await desk.done()
    assert desk.asked == ["key", "file"]


@pytest.mark.parametrize(
    ("provider", "most"), [("gem", 5), ("openai-compatible-acme", 20), ("openai-compatibility", 20)]
)
async def test_2_2_only_so_many_of_one_kind_are_asked_at_a_time(desk, provider, most):
    desk.go_on.clear()
    desk.follow(*(credential(f"{number:02}", provider) for number in range(30)))
    await desk.reach(most)
    desk.go_on.set()
    await desk.done()
    assert (desk.most, len(desk.asked)) == (most, 30)


async def test_kinds_do_not_wait_for_each_other(desk):
    desk.go_on.clear()
    desk.follow(*(credential(f"{provider}{number}", provider) for provider in ("a", "b") for number in range(9)))
    await desk.reach(10)
    desk.go_on.set()
    await desk.done()
    assert desk.most == 10


async def test_what_changed_is_asked_again_and_what_is_gone_is_forgotten(desk):
    desk.follow(credential("a"), credential("b"))
    await desk.done()
    desk.answers["a"] = ["n"]
    assert desk.follow(credential("a"), why=2) is True
    await desk.done()
    assert (desk.asked, desk.names(), desk.published) == (["a", "b", "a"], {"a": ["n"]}, 2)


async def test_an_answer_that_could_not_be_had_keeps_what_was_known_and_is_asked_for_again(desk):
    desk.follow(credential("a"))
    await desk.done()
    desk.answers["a"] = LookupError()
    for why in (2, 2):
        desk.follow(credential("a"), why=why)
        await desk.done()
    assert (desk.asked, desk.names(), desk.published) == (["a"] * 3, {"a": ["m"]}, 1)


async def test_who_could_not_be_asked_is_asked_again_after_a_while_and_less_and_less_often(desk):
    desk.answers |= {"a": LookupError(), "b": ValueError("a bug")}
    desk.follow(*(credential(name) for name in "abc"))
    await desk.done()
    assert desk.asked == ["a", "b", "c"]
    for round_ in range(8):
        assert await desk.later() == pytest.approx(min(RETRY_S * 2**round_, MAX_RETRY_S))
        assert desk.asked[-2:] == ["a", "b"]
    desk.answers = {"b": LookupError()}
    await desk.later()
    assert (desk.names(), desk.published) == ({"a": ["m"], "c": ["m"]}, 2)
    assert await desk.later() == MAX_RETRY_S
    desk.answers = {}
    await desk.later()
    assert (len(desk.asked), desk.names().keys(), desk.waits) == (23, {"a", "b", "c"}, [])


async def test_who_could_not_be_asked_and_is_gone_is_not_asked_again(desk):
    desk.answers["a"] = LookupError()
    desk.follow(credential("a"))
    await desk.done()
    desk.follow()
    await desk.later()
    assert (desk.asked, desk.waits) == (["a"], [])


async def test_no_opinion_is_no_list_and_an_empty_list_is_one(desk):
    desk.answers |= {"a": None, "b": []}
    desk.follow(credential("a"), credential("b"))
    await desk.done()
    assert desk.names() == {"b": []}


async def test_who_comes_while_a_batch_runs_is_taken_on(desk):
    desk.go_on.clear()
    first, second = credential("a"), credential("b")
    desk.follow(first)
    await desk.reach(1)
    desk.follow(first, second)
    desk.go_on.set()
    await desk.done()
    assert (desk.asked, desk.published) == (["a", "b"], 1)


async def test_who_goes_while_being_asked_leaves_no_trace(desk):
    desk.go_on.clear()
    desk.follow(credential("a"))
    await desk.reach(1)
    desk.follow()
    desk.go_on.set()
    await desk.done()
    assert (desk.names(), desk.published) == ({}, 0)
