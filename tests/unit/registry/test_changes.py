"""What the log says of models that come and go, and when plugins are asked for them again."""

import asyncio
from pathlib import Path

import structlog

from host.config.model import Config
from host.credentials.manager import CredentialManager
from host.credentials.records import Credential
from host.pipeline.state import build_state
from host.pool_parts import REFRESH_MODELS_EVERY_S, PoolParts
from host.registry.changes import log_changes
from host.registry.models import Catalogue, ModelRow, ModelSource
from host.runtime.handle import EMPTY_SNAPSHOT
from host.runtime.invoke import Invoker
from host.state.opening import open_state
from host.worker import Worker
from pluginabi.payloads.common import ModelInfo
from pluginabi.payloads.models import ModelForAuthResponse
from tests.support.pipeline import FakePlugin, answering, compat_config, executor, snapshot


def catalogue(*names: str) -> Catalogue:
    rows = tuple(ModelRow(client=name, upstreams=(name,), info=ModelInfo(id=name)) for name in names)
    return Catalogue([ModelSource(id="s", provider="p", rows=rows)])


def test_the_log_names_models_that_came_and_went_once():
    with structlog.testing.capture_logs() as logs:
        log_changes(catalogue("a", "b"), catalogue("b", "c"))
        log_changes(catalogue("a", "B"), catalogue("b", "A"))
    assert logs == [
        {"event": "models.changed", "log_level": "info", "added": ["c"], "removed": ["a"], "models": 2},
    ]


def test_of_very_many_models_the_log_names_some():
    with structlog.testing.capture_logs() as logs:
        log_changes(catalogue(), catalogue(*(f"m{number:03}" for number in range(100))))
    (entry,) = logs
    assert (len(entry["added"]), entry["added"][0], entry["added"][-1]) == (21, "m000", "and 80 more")


def test_a_reload_that_changes_no_model_says_nothing():
    plugins = snapshot(executor(answering()))
    first = build_state(compat_config(), plugins)
    with structlog.testing.capture_logs() as logs:
        second = build_state(compat_config(keys=("k1", "k2")), plugins, previous=first)
        assert logs == []
        build_state(compat_config(models=("m", "n")), plugins, previous=second)
    assert [(entry["event"], entry["added"]) for entry in logs] == [("models.changed", ["n"])]


async def test_every_three_hours_plugins_are_asked_for_their_models_again(tmp_path: Path):
    state = build_state(Config(directory=str(tmp_path)), EMPTY_SNAPSHOT)
    asked: list[float] = []
    waits: list[float] = []
    turns, done = asyncio.Semaphore(2), asyncio.Event()

    async def sleep(wait_s: float) -> None:
        waits.append(wait_s)
        await turns.acquire()

    async def list_models() -> None:
        asked.append(waits[-1])
        if len(asked) == 2:
            done.set()

    async def amend(*_: object) -> None: ...

    parts = PoolParts(
        lambda: state,
        invoker=Invoker(),
        shared=open_state(state.config),
        worker=Worker(),
        amend=amend,
        rebuild=lambda: None,
        list_models=list_models,
        sleep=sleep,
    )
    async with asyncio.timeout(5):
        await done.wait()
        await parts.stop()
    gem = Credential(id="a", provider="gem", label="a", source_kind="file", auth_kind="oauth")
    manager = CredentialManager()
    manager.set_source("a", [gem])
    lists = FakePlugin(id="p", hooks={"model.for_auth": lambda _: ModelForAuthResponse()}, providers=["gem"])
    parts.swapped(build_state(state.config, snapshot(lists), manager=manager))
    assert lists.handle.calls == []
    assert asked == [REFRESH_MODELS_EVERY_S] * 2 == [10_800.0] * 2
