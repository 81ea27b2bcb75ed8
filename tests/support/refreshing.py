"""A plugin that refreshes, and a refresher whose clock the test moves."""

import asyncio
from pathlib import Path
from typing import Any

import pytest

from host.credentials import files
from host.credentials.records import Credential
from host.credentials.refresh import Refresher
from host.credentials.renew import Renewer
from host.tasks import TaskGroup
from pluginabi.payloads.credentials import AuthRefreshRequest, AuthRefreshResponse
from tests.support.auth_plugins import ScriptedAuth, record
from tests.support.auth_site import Site

NOW_S = 10_000.0


class Bench:
    """A site with one file per name, a plugin that refreshes, and a refresher whose clock is the site's."""

    def __init__(self, directory: Path, answer: Any, tasks: TaskGroup, **scripted: Any) -> None:
        self.plugins = ScriptedAuth(refreshed={"acme": answer}, **scripted)
        self.site = Site(directory, self.plugins)
        self.site.now_s = NOW_S
        self.renewer = Renewer(self.site.manager, self.site.directory, self.plugins)
        self.mono_s = 0.0
        self.site.manager.monotonic = lambda: self.mono_s
        self.refresher = Refresher(self.site.manager, self.renewer, tasks, monotonic=lambda: self.mono_s)
        self.site.manager.refresher = self.refresher
        self.site.manager.on_change = self._changed

    def _changed(self, change: Any) -> None:
        self.site.told.append(change)
        self.refresher.changed(change)

    async def opened(self, *names: str, **members: Any) -> "Bench":
        for name in names or ("a.json",):
            defaults = {"type": "acme", "access_token": "old", "refresh_token": "r1", "expires_at": NOW_S + 600}
            self.site.put(name, **defaults | members)
        await self.site.opened()
        self.refresher.schedule_all()
        return self

    async def tick(self, seconds: float) -> None:
        """Let time pass, and wait for every refresh that is due then."""
        self.site.now_s += seconds
        self.mono_s += seconds
        async with asyncio.timeout(10):
            await asyncio.gather(*self.refresher.start_due())

    def record(self, credential_id: str = "a.json") -> Credential:
        return self.site.manager.by_id[credential_id]

    def due_in(self, credential_id: str = "a.json") -> float | None:
        due = self.refresher.due(credential_id)
        return due - self.site.now_s if due is not None else None

    @property
    def asked(self) -> list[AuthRefreshRequest]:
        return [request for request in self.plugins.seen if isinstance(request, AuthRefreshRequest)]


def renewed(**fields: Any) -> Any:
    """An answer with a new token that expires in an hour."""
    number = iter(range(2, 100))

    def answer(request: AuthRefreshRequest) -> AuthRefreshResponse:
        storage = {"access_token": f"new{(n := next(number))}", "refresh_token": f"r{n}", "expires_at": NOW_S + 3600}
        return AuthRefreshResponse(record=record(storage), **fields)

    return answer


class FullDisk:
    """Writing fails until there is room again."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.is_full, write = True, files.write

        def attempt(path: str, data: bytes, **options: Any) -> bool:
            if self.is_full:
                raise OSError(28, "No space left on device")
            return write(path, data, **options)

        monkeypatch.setattr(files, "write", attempt)
