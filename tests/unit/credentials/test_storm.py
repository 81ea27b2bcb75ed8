"""Everybody changes one account at once: refreshes, logins, edits, the watcher, callers who go away, a full disk."""

import asyncio
import contextlib
import json
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest

from host.credentials.editor import CredentialError
from host.tasks import TaskGroup
from pluginabi.errors import ErrorBody, PluginError
from pluginabi.payloads.common import CredentialRecord
from pluginabi.payloads.credentials import AuthParseRequest, AuthRefreshRequest, AuthRefreshResponse
from tests.support.auth_plugins import record
from tests.support.refreshing import NOW_S, Bench, FullDisk


class Provider:
    """Gives each refresh token out for one use. A second use revokes what came of it, as strict providers do."""

    def __init__(self, chance: random.Random) -> None:
        self.chance = chance
        self.heads = {"r1": 1}
        """Tokens that were not used yet -> their chain."""
        self.used: list[str] = []
        self.reused: list[str] = []
        self._number = 1

    def give_out(self, chain: int) -> dict[str, object]:
        self._number += 1
        token = f"r{self._number}"
        self.heads[token] = chain
        return {"access_token": f"a{self._number}", "refresh_token": token, "expires_at": NOW_S + 9000}

    def log_in(self, chain: int) -> dict[str, object]:
        return {**self.give_out(chain), "account": chain}

    async def refresh(self, request: AuthRefreshRequest) -> AuthRefreshResponse | PluginError:
        members = json.loads(bytes(request.credential.storage))
        await self.idle()
        token = members["refresh_token"]
        if token not in self.heads:
            self.reused.append(token)
            return PluginError(ErrorBody(message="used before", code="invalid_grant"))
        chain = self.heads.pop(token)
        self.used.append(token)
        await self.idle()
        return AuthRefreshResponse(record=record({**members, **self.give_out(chain)}))

    async def parse(self, request: AuthParseRequest) -> list[CredentialRecord]:
        await self.idle()
        return [record({})]

    async def idle(self) -> None:
        for _ in range(self.chance.randrange(6)):
            await asyncio.sleep(0)


class Storm:
    """The people who change things, and what they may expect."""

    def __init__(self, bench: Bench, provider: Provider, disk: FullDisk, chance: random.Random) -> None:
        self.bench, self.provider, self.disk, self.chance = bench, provider, disk, chance
        self.logins = 1
        self.notes: list[str] = [""]
        """The last note that was certainly written, and those after it that may have been."""

    async def refresh(self) -> None:
        self.bench.mono_s += 60.0
        await self.bench.site.manager.refresh_now("a.json")

    async def log_in(self) -> None:
        self.logins += 1
        fresh = record(self.provider.log_in(self.logins), file_name="a.json")
        await self.bench.site.editor.save_login("acme", [fresh])

    async def edit(self) -> None:
        note = f"n{len(self.notes)}-{self.chance.random()}"
        self.notes.append(note)
        await self.bench.site.editor.patch("a.json", {"note": note})
        del self.notes[: self.notes.index(note)]

    async def switch(self) -> None:
        await self.bench.site.editor.set_disabled("a.json", self.chance.random() < 0.5)

    async def watch(self) -> None:
        await self.bench.site.directory.refresh([str(self.bench.site.path / "a.json")])

    async def parse_again(self) -> None:
        await self.bench.site.directory.load()

    async def fill_disk(self) -> None:
        self.disk.is_full = True
        try:
            await self.provider.idle()
        finally:
            self.disk.is_full = False

    async def write_again(self) -> None:
        await self.bench.renewer.write_again()

    async def run(self, people: int) -> None:
        every: list[Callable[[], Awaitable[None]]] = [
            *(self.refresh, self.refresh, self.refresh, self.edit, self.edit, self.log_in, self.switch),
            *(self.watch, self.watch, self.parse_again, self.fill_disk, self.write_again),
        ]

        async def person() -> None:
            for _ in range(self.chance.randrange(1, 5)):
                with contextlib.suppress(CredentialError):
                    await self.chance.choice(every)()
                await self.provider.idle()

        tasks = [asyncio.create_task(person()) for _ in range(people)]
        for task in self.chance.sample(tasks, people // 4):
            await self.provider.idle()
            task.cancel()
        await asyncio.wait(tasks)
        for task in tasks:
            if not task.cancelled():
                task.result()


@pytest.fixture
async def tasks() -> AsyncIterator[TaskGroup]:
    group = TaskGroup("test")
    yield group
    await group.stop()


@pytest.mark.parametrize("seed", range(6))
async def test_in_the_end_memory_and_disk_agree_on_a_token_that_still_works(
    tmp_path: Path, tasks: TaskGroup, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    chance = random.Random(seed)
    provider = Provider(chance)
    parsers = {"acme": provider.parse} if seed % 2 else {}
    bench = await Bench(tmp_path, provider.refresh, tasks, parsers=parsers).opened(account=1)
    storm = Storm(bench, provider, FullDisk(monkeypatch), chance)
    storm.disk.is_full = False
    async with asyncio.timeout(60):
        for _ in range(6):
            await storm.run(people=12)
            await tasks.join()
    await bench.renewer.write_again()
    path = str(bench.site.path / "a.json")
    stored = bench.site.read("a.json")
    found = bench.record()
    assert provider.reused == [], "no refresh token was used twice"
    assert stored["refresh_token"] == found.metadata.reveal()["refresh_token"]
    assert stored["refresh_token"] in provider.heads, "the newest token of its login"
    assert provider.heads[stored["refresh_token"]] == stored["account"], "and of no other"
    assert found.secret is not None and found.secret.reveal() == stored["access_token"]
    assert found.disabled is bool(stored.get("disabled"))
    assert stored.get("note", "") in storm.notes and found.note == stored.get("note", "")
    await bench.site.directory.scan()
    await bench.site.directory.load()
    await bench.site.directory.refresh([path])
    again = bench.record()
    assert (again.secret, again.note, again.disabled) == (found.secret, found.note, found.disabled)
