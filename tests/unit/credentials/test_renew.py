"""What becomes of a new token: on disk, beside changes of others, and when it cannot be written."""

import asyncio
import json
from collections.abc import AsyncIterator

import pytest
from msgspec import Raw

from host.credentials.refresh import Refresher
from host.credentials.renew import Renewer
from host.credentials.secret import Secret
from host.tasks import TaskGroup
from pluginabi.errors import ErrorBody, PluginError
from pluginabi.payloads.common import CredentialRecord
from pluginabi.payloads.credentials import AuthParseRequest, AuthRefreshRequest, AuthRefreshResponse
from tests.support.auth_plugins import Slowly, record
from tests.support.refreshing import NOW_S, Bench, FullDisk, renewed


@pytest.fixture
async def tasks() -> AsyncIterator[TaskGroup]:
    group = TaskGroup("test")
    yield group
    await group.stop()


async def test_a_token_that_could_not_be_written_survives_parsing_and_edits_and_is_written_later(
    tmp_path, tasks, monkeypatch
):
    bench = await Bench(tmp_path, renewed(), tasks).opened(expired="1970-01-01T02:50:00Z")
    disk = FullDisk(monkeypatch)
    await bench.tick(300)
    await bench.site.directory.load()
    assert bench.record().secret == Secret("new2")
    disk.is_full = False
    await bench.site.editor.patch("a.json", {"note": "mine"})
    assert (bench.record().secret, bench.record().note) == (Secret("new2"), "mine")
    assert bench.site.read("a.json")["access_token"] == "old"
    await bench.renewer.write_again()
    stored = bench.site.read("a.json")
    assert (stored["access_token"], stored["refresh_token"], stored["note"]) == ("new2", "r2", "mine")
    assert "expired" not in stored and bench.site.directory.newer.unwritten == {}
    assert bench.record().expires_at_s == NOW_S + 3600


async def test_what_could_not_be_written_twice_is_written_with_the_next_refresh(tmp_path, tasks, monkeypatch):
    numbers = iter(["r2", "r2", "r2"])  # the provider gives out a new refresh token once

    def answer(request: AuthRefreshRequest) -> AuthRefreshResponse:
        storage = {"access_token": f"new{len(bench.asked)}", "refresh_token": next(numbers), "expires_at": 0}
        return AuthRefreshResponse(record=record(storage))

    bench = await Bench(tmp_path, answer, tasks).opened()
    disk = FullDisk(monkeypatch)
    await bench.site.manager.refresh_now("a.json")
    await bench.site.manager.refresh_now("a.json")
    disk.is_full = False
    await bench.site.manager.refresh_now("a.json")
    stored = bench.site.read("a.json")
    assert (stored["access_token"], stored["refresh_token"]) == ("new3", "r2")


async def test_a_token_that_could_not_be_written_is_forgotten_with_its_account(tmp_path, tasks, monkeypatch):
    bench = await Bench(tmp_path, renewed(), tasks).opened()
    disk = FullDisk(monkeypatch)
    await bench.tick(300)
    disk.is_full = False
    path = bench.site.put("a.json", type="acme", access_token="other", refresh_token="o1", expires_at=NOW_S + 9000)
    await bench.site.directory.refresh([path])
    await bench.renewer.write_again()
    assert (bench.record().secret, bench.site.read("a.json")["access_token"]) == (Secret("other"), "other")


async def test_what_could_not_be_written_is_tried_again_by_itself(tmp_path, tasks, monkeypatch):
    bench = await Bench(tmp_path, renewed(), tasks).opened()
    disk = FullDisk(monkeypatch)
    again = Renewer(bench.site.manager, bench.site.directory, bench.plugins, retry_s=0.0)
    await bench.tick(300)
    disk.is_full = False
    written, write_again = asyncio.Event(), again.write_again

    async def noticed() -> None:
        await write_again()
        written.set()

    monkeypatch.setattr(again, "write_again", noticed)
    running = tasks.start(again.run(), name="unwritten")
    async with asyncio.timeout(10):
        await written.wait()
    running.cancel()
    assert bench.site.read("a.json")["access_token"] == "new2"


@pytest.mark.parametrize("is_read", [True, False])
async def test_an_account_that_was_logged_in_anew_during_a_refresh_keeps_its_new_token(tmp_path, tasks, is_read):
    slowly = Slowly(renewed())
    bench = await Bench(tmp_path, slowly, tasks).opened()
    async with asyncio.timeout(10):
        ticking = asyncio.create_task(bench.tick(300))
        await slowly.going.wait()
        path = bench.site.put("a.json", type="acme", access_token="login", refresh_token="l1", expires_at=NOW_S + 9000)
        if is_read:
            await bench.site.directory.refresh([path])
        slowly.go_on.set()
        await ticking
    assert (bench.record().secret, bench.site.read("a.json")["refresh_token"]) == (Secret("login"), "l1")
    assert bench.due_in() == 8400.0


async def test_a_change_of_the_operator_during_a_refresh_survives_the_plugins_older_copy_of_it(tmp_path, tasks):
    def answer(request: AuthRefreshRequest) -> AuthRefreshResponse:
        storage = json.loads(bytes(request.credential.storage)) | {"access_token": "new", "refresh_token": "r2"}
        return AuthRefreshResponse(record=record(storage))

    slowly = Slowly(answer)
    bench = await Bench(tmp_path, slowly, tasks).opened(note="old", priority=1)
    async with asyncio.timeout(10):
        ticking = asyncio.create_task(bench.tick(300))
        await slowly.going.wait()
        await bench.site.editor.patch("a.json", {"note": "newer", "priority": 7})
        slowly.go_on.set()
        await ticking
    found, stored = bench.record(), bench.site.read("a.json")
    assert (found.note, found.priority, found.secret) == ("newer", 7, Secret("new"))
    assert (stored["note"], stored["priority"], stored["access_token"]) == ("newer", 7, "new")


async def test_a_credential_that_is_being_switched_off_when_its_new_token_arrives_stays_off(tmp_path, tasks):
    parsing, go_on, asked = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def parse(request: AuthParseRequest) -> list[CredentialRecord]:
        if json.loads(bytes(request.file)).get("disabled"):
            parsing.set()
            await go_on.wait()
        return [record({})]

    async def refresh(request: AuthRefreshRequest) -> AuthRefreshResponse:
        asked.set()
        return renewed()(request)

    bench = await Bench(tmp_path, refresh, tasks, parsers={"acme": parse}).opened()
    async with asyncio.timeout(10):
        off = asyncio.create_task(bench.site.editor.set_disabled("a.json", True))
        await parsing.wait()
        ticking = asyncio.create_task(bench.tick(300))
        await asked.wait()
        await asyncio.sleep(0)
        go_on.set()
        await asyncio.gather(ticking, off)
    assert (bench.record().disabled, bench.record().secret) == (True, Secret("new2"))
    stored = bench.site.read("a.json")
    assert (stored["disabled"], stored["access_token"]) == (True, "new2")


@pytest.mark.parametrize(
    ("members", "answer"),
    [
        ({"expired": "1970-01-01T02:50:00Z", "expires_at": None}, {"expires_at": NOW_S + 3600}),
        ({"expires_at": NOW_S}, {"token": {"expiry": NOW_S + 3600}}),
    ],
    ids=["another name", "another place"],
)
async def test_the_expiry_of_the_old_token_does_not_outlive_it_under_another_name(tmp_path, tasks, members, answer):
    response = AuthRefreshResponse(record=record({"access_token": "new", **answer}))
    bench = await Bench(tmp_path, lambda request: response, tasks).opened(**members)
    await bench.tick(300)
    assert bench.record().expires_at_s == NOW_S + 3600
    assert bench.due_in() == 3000.0
    await bench.site.directory.scan()
    await bench.site.directory.load()
    assert bench.record().expires_at_s == NOW_S + 3600


async def test_a_request_does_not_wait_for_ever_for_a_refresh_which_goes_on(tmp_path, tasks):
    go_on = asyncio.Event()

    async def slowly(request: AuthRefreshRequest) -> AuthRefreshResponse:
        await go_on.wait()
        return renewed()(request)

    bench = await Bench(tmp_path, slowly, tasks).opened()
    hurried = Refresher(bench.site.manager, bench.renewer, tasks, on_demand_wait_s=0.0)
    assert await hurried.refresh_now("a.json") is False
    go_on.set()
    async with asyncio.timeout(10):
        await tasks.join()
    assert bench.record().secret == Secret("new2")


async def test_the_refusal_of_an_old_token_is_not_held_against_a_login_meanwhile(tmp_path, tasks):
    slowly = Slowly(lambda _: PluginError(ErrorBody(message="used before", code="invalid_grant")))
    bench = await Bench(tmp_path, slowly, tasks).opened()
    async with asyncio.timeout(10):
        asking = asyncio.create_task(bench.site.manager.refresh_now("a.json"))
        await slowly.going.wait()
        path = bench.site.put("a.json", type="acme", access_token="login", refresh_token="l1", expires_at=NOW_S + 9000)
        await bench.site.directory.refresh([path])
        slowly.go_on.set()
        assert await asking is True
    assert bench.record().refresh_error is None
    assert bench.due_in() == 8700.0


async def test_a_refresh_that_breaks_the_host_itself_is_tried_again_like_any_that_failed(tmp_path, tasks):
    bench = await Bench(tmp_path, lambda request: ZeroDivisionError("ours"), tasks).opened()
    assert await bench.site.manager.refresh_now("a.json") is False
    assert bench.due_in() == 300.0
    assert await bench.site.manager.refresh_now("a.json") is False
    assert len(bench.asked) == 1


async def test_a_renewed_record_that_is_nested_too_deeply_is_a_failure_with_a_reason(tmp_path, tasks):
    deep = CredentialRecord(storage=Raw(b'{"a":' * 5000 + b"1" + b"}" * 5000))
    bench = await Bench(tmp_path, lambda request: AuthRefreshResponse(record=deep), tasks).opened()
    assert await bench.site.manager.refresh_now("a.json") is False
    error = bench.record().refresh_error
    assert error is not None and "cannot be used" in error.message
    assert bench.due_in() == 300.0
