"""When tokens are refreshed, one refresh at a time, and what becomes of the answer."""

import asyncio
import json
import os
from collections.abc import AsyncIterator
from typing import Any

import pytest

from host.credentials import files
from host.credentials.records import Credential, RefreshError
from host.credentials.refresh import due_at, lead_of
from host.credentials.secret import Secret, SecretDocument
from host.tasks import TaskGroup
from pluginabi.errors import ErrorBody, PluginError, PluginTransportError
from pluginabi.payloads.credentials import AuthRefreshRequest, AuthRefreshResponse, AuthSaveRequest, AuthSaveResponse
from tests.support.auth_plugins import Slowly, record
from tests.support.refreshing import NOW_S, Bench, renewed

MINUTE_S = 60.0


def credential(**fields: Any) -> Credential:
    defaults: dict[str, Any] = {
        "id": "a",
        "provider": "acme",
        "label": "a",
        "source_kind": "file",
        "auth_kind": "oauth",
    }
    return Credential(**defaults | fields)


@pytest.mark.parametrize(
    ("vector", "fields", "lead_s", "expected"),
    [
        ("H1", {"auth_kind": "apikey", "expires_at_s": NOW_S}, 600.0, None),
        ("H1", {"source_kind": "config", "expires_at_s": NOW_S}, 600.0, None),
        ("H2", {"disabled": True, "expires_at_s": NOW_S + 60 * MINUTE_S}, 600.0, 50 * MINUTE_S),
        ("H3", {"next_refresh_at_s": NOW_S + 30 * MINUTE_S, "expires_at_s": NOW_S}, 600.0, 30 * MINUTE_S),
        (
            "H4",
            {"refresh_interval_s": 900.0, "last_refreshed_at_s": NOW_S, "expires_at_s": NOW_S + 20 * MINUTE_S},
            None,
            5 * MINUTE_S,
        ),
        ("H6", {"attributes": {"refresh": "plugin"}}, None, 15 * MINUTE_S),
        ("H7", {"expires_at_s": NOW_S}, None, None),
        ("interval without last", {"refresh_interval_s": 900.0}, None, 0.0),
        (
            "interval, past expiry",
            {"refresh_interval_s": 9.0, "last_refreshed_at_s": 1.0, "expires_at_s": 2.0},
            None,
            0.0,
        ),
        ("lead, past expiry", {"expires_at_s": NOW_S - 5}, 600.0, 0.0),
        ("lead after last", {"last_refreshed_at_s": NOW_S - 100}, 600.0, 500.0),
        ("lead, nothing known", {}, 600.0, 0.0),
        ("H8", {"refresh_error": RefreshError(message="x", http_status=401), "expires_at_s": NOW_S}, 600.0, None),
    ],
)
def test_when_a_token_is_due(vector, fields, lead_s, expected):
    found = due_at(credential(**fields), now_s=NOW_S, lead_s=lead_s)
    assert (found - NOW_S if found is not None else None) == expected


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"metadata": SecretDocument({"refresh_token": "r"}), "expires_at_s": 1.0}, 300.0),
        ({"metadata": SecretDocument({"refresh_token": "r"})}, None),
        ({"expires_at_s": 1.0}, None),
        ({"metadata": SecretDocument({"refresh_lead_seconds": 60})}, 60.0),
        ({"attributes": {"refresh_lead_seconds": "14400"}}, 14400.0),
    ],
)
def test_the_lead_is_what_the_record_says_else_five_minutes_for_a_token_that_expires(fields, expected):
    assert lead_of(credential(**fields)) == expected


@pytest.fixture
async def tasks() -> AsyncIterator[TaskGroup]:
    group = TaskGroup("test")
    yield group
    await group.stop()


async def test_a_token_is_refreshed_before_it_expires_and_the_file_keeps_everything_else(tmp_path, tasks):
    bench = await Bench(tmp_path, renewed(), tasks).opened(note="mine", own={"n": 1})
    assert bench.due_in() == 300.0
    await bench.tick(299)
    assert bench.asked == []
    await bench.tick(1)
    (request,) = bench.asked
    assert json.loads(bytes(request.credential.storage))["refresh_token"] == "r1"
    assert bench.site.read("a.json") == {
        "type": "acme",
        "access_token": "new2",
        "refresh_token": "r2",
        "expires_at": NOW_S + 3600,
        "note": "mine",
        "own": {"n": 1},
        "last_refresh": "1970-01-01T02:51:40Z",
    }
    found = bench.record()
    assert (found.secret, found.last_refreshed_at_s, found.refresh_error) == (Secret("new2"), NOW_S + 300, None)
    assert bench.due_in() == 3000.0
    assert bench.site.told[-1].refreshed == {"a.json"} and not bench.site.told[-1].routing


async def test_a_refresh_changes_nothing_for_the_watcher(tmp_path, tasks):
    bench = await Bench(tmp_path, renewed(), tasks).opened()
    await bench.tick(300)
    told = len(bench.site.told)
    await bench.site.directory.refresh([str(bench.site.path / "a.json")])
    await bench.site.directory.load()
    assert len(bench.site.told) == told


async def test_the_plugin_may_say_when_the_next_refresh_is_due(tmp_path, tasks):
    bench = await Bench(tmp_path, renewed(next_refresh_after="1970-01-01T03:00:00Z"), tasks).opened()
    await bench.tick(300)
    assert bench.refresher.due("a.json") == 10800.0


async def test_a_refresh_that_is_due_again_at_once_waits_half_a_minute(tmp_path, tasks):
    answer = AuthRefreshResponse(record=record({"access_token": "new", "expires_at": NOW_S}))
    bench = await Bench(tmp_path, lambda request: answer, tasks).opened()
    await bench.tick(300)
    assert bench.due_in() == 30.0


async def test_an_empty_answer_changes_nothing(tmp_path, tasks):
    bench = await Bench(tmp_path, lambda request: AuthRefreshResponse(), tasks).opened()
    before = bench.site.read("a.json")
    await bench.tick(300)
    assert (bench.site.read("a.json"), bench.record().secret) == (before, Secret("old"))


@pytest.mark.parametrize(
    "error", [ErrorBody(message="no", http_status=401), ErrorBody(message="no", code="invalid_grant", http_status=400)]
)
async def test_H8_a_refused_refresh_is_not_tried_again_until_the_file_changes(tmp_path, tasks, error):
    bench = await Bench(tmp_path, lambda request: PluginError(error), tasks).opened()
    await bench.tick(300)
    found = bench.record()
    assert (found.refresh_error.http_status, found.refresh_error.message) == (401, "unauthorized")
    assert bench.due_in() is None
    assert await bench.site.manager.refresh_now("a.json") is False
    assert len(bench.asked) == 1
    path = bench.site.put("a.json", type="acme", refresh_token="fresh", expires_at=NOW_S + 900)
    await bench.site.directory.refresh([path])
    assert bench.record().refresh_error is None
    assert bench.due_in() == 300.0


@pytest.mark.parametrize(
    "error",
    [
        PluginError(ErrorBody(message="busy", http_status=503)),
        PluginTransportError("p", "auth.refresh", phase="unavailable", cause="gone"),
    ],
)
async def test_H9_a_refresh_that_fails_otherwise_is_tried_again_after_five_minutes(tmp_path, tasks, error):
    answers: list[Any] = [error, renewed()(None)]
    bench = await Bench(tmp_path, lambda request: answers.pop(0), tasks).opened()
    await bench.tick(300)
    assert bench.due_in() == 300.0
    assert bench.record().refresh_error is not None
    assert bench.record().secret == Secret("old")
    await bench.tick(300)
    assert (bench.record().secret, bench.record().refresh_error) == (Secret("new2"), None)


async def test_H11_a_removed_credential_is_not_refreshed(tmp_path, tasks):
    bench = await Bench(tmp_path, renewed(), tasks).opened()
    await bench.site.directory.discard(str(bench.site.path / "a.json"))
    assert bench.due_in() is None
    await bench.tick(1000)
    assert bench.asked == []


async def test_a_credential_that_goes_while_it_is_refreshed_makes_no_file(tmp_path, tasks):
    slowly = Slowly(renewed())
    bench = await Bench(tmp_path, slowly, tasks).opened()
    async with asyncio.timeout(10):
        ticking = asyncio.create_task(bench.tick(300))
        await slowly.going.wait()
        await bench.site.directory.discard(str(bench.site.path / "a.json"))
        slowly.go_on.set()
        await ticking
    assert not (bench.site.path / "a.json").exists()
    assert bench.site.ids() == []


async def test_disabled_credentials_are_kept_alive_unless_the_operator_says_no(tmp_path, tasks):
    bench = await Bench(tmp_path, renewed(), tasks).opened(disabled=True)
    assert bench.due_in() == 300.0
    bench.refresher.refresh_disabled = False
    bench.refresher.schedule_all()
    assert bench.due_in() is None


async def test_requests_that_meet_a_401_at_the_same_time_share_one_refresh(tmp_path, tasks):
    bench = await Bench(tmp_path, renewed(), tasks).opened()
    async with asyncio.timeout(10):
        answers = await asyncio.gather(*(bench.site.manager.refresh_now("a.json") for _ in range(5)))
    assert answers == [True] * 5
    assert len(bench.asked) == 1


async def test_a_request_whose_token_was_renewed_meanwhile_asks_for_no_other(tmp_path, tasks):
    bench = await Bench(tmp_path, renewed(), tasks).opened()
    bench.mono_s = 50.0
    assert await bench.site.manager.refresh_now("a.json", started_s=40.0) is True
    assert await bench.site.manager.refresh_now("a.json", started_s=45.0) is True
    assert len(bench.asked) == 1
    bench.mono_s = 70.0
    assert await bench.site.manager.refresh_now("a.json", started_s=60.0) is True
    assert len(bench.asked) == 2


async def test_after_a_failed_refresh_requests_do_not_ask_again_at_once(tmp_path, tasks):
    bench = await Bench(tmp_path, lambda request: PluginError(ErrorBody(message="x", http_status=503)), tasks).opened()
    assert await bench.site.manager.refresh_now("a.json") is False
    assert await bench.site.manager.refresh_now("a.json") is False
    assert len(bench.asked) == 1
    bench.mono_s += 31
    assert await bench.site.manager.refresh_now("a.json") is False
    assert len(bench.asked) == 2


async def test_after_a_refresh_that_did_not_help_requests_do_not_ask_again_at_once(tmp_path, tasks):
    bench = await Bench(tmp_path, renewed(), tasks).opened()
    bench.mono_s = 50.0
    manager = bench.site.manager
    assert await manager.refresh_now("a.json", started_s=40.0) is True
    manager.refreshed_in_vain("a.json", started_s=45.0)  # an older token was refused
    bench.mono_s = 55.0
    assert await manager.refresh_now("a.json", started_s=45.0) is True
    manager.refreshed_in_vain("a.json", started_s=52.0)
    assert await manager.refresh_now("a.json", started_s=54.0) is False
    assert len(bench.asked) == 1
    bench.mono_s += 31
    assert await manager.refresh_now("a.json", started_s=80.0) is True
    assert len(bench.asked) == 2


@pytest.mark.parametrize("members", [{"refresh_token": ""}, {"type": "other"}])
async def test_what_cannot_be_refreshed_is_not(tmp_path, tasks, members):
    bench = await Bench(tmp_path, renewed(), tasks).opened(**members)
    assert await bench.site.manager.refresh_now("a.json") is False
    assert await bench.site.manager.refresh_now("missing.json") is False
    assert bench.asked == []


async def test_a_request_that_is_given_up_does_not_end_the_refresh(tmp_path, tasks):
    slowly = Slowly(renewed())
    bench = await Bench(tmp_path, slowly, tasks).opened()
    asking = asyncio.create_task(bench.site.manager.refresh_now("a.json"))
    async with asyncio.timeout(10):
        await slowly.going.wait()
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking
        slowly.go_on.set()
        await tasks.join()
    assert bench.record().secret == Secret("new2")


async def test_a_refresh_waits_for_whoever_holds_the_credential(tmp_path, tasks):
    bench = await Bench(tmp_path, renewed(), tasks).opened()
    async with bench.site.manager.exclusive("a.json"):
        asking = asyncio.create_task(bench.site.manager.refresh_now("a.json"))
        for _ in range(5):
            await asyncio.sleep(0)
        assert bench.asked == []
    async with asyncio.timeout(10):
        assert await asking is True


async def test_a_new_token_that_cannot_be_written_is_used_nevertheless(tmp_path, tasks, monkeypatch):
    bench = await Bench(tmp_path, renewed(), tasks).opened()

    def full(path: str, data: bytes, **options: object) -> bool:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files, "write", full)
    await bench.tick(300)
    assert bench.record().secret == Secret("new2")
    assert bench.site.read("a.json")["access_token"] == "old"


async def test_an_edit_of_the_operator_that_was_not_read_yet_survives_a_refresh(tmp_path, tasks):
    bench = await Bench(tmp_path, renewed(), tasks).opened()
    path = bench.site.path / "a.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"note": "just now"}))
    await bench.tick(300)
    assert bench.site.read("a.json")["note"] == "just now"
    assert bench.site.read("a.json")["access_token"] == "new2"


def two(request: Any) -> list[Any]:
    tokens = json.loads(bytes(request.file))["tokens"]
    return [record({"access_token": t, "refresh_token": t, "expires_at": NOW_S + 600}) for t in tokens]


async def test_one_of_several_credentials_is_renewed_in_memory_and_its_file_left_alone(tmp_path, tasks):
    bench = await Bench(tmp_path, renewed(), tasks, parsers={"acme": two}).opened(tokens=["t0", "t1"])
    before = (bench.site.path / "a.json").read_bytes()
    await bench.tick(300)
    assert [bench.record(f"a.json#{n}").secret for n in range(2)] == [Secret("new2"), Secret("new3")]
    assert (bench.site.path / "a.json").read_bytes() == before
    assert os.stat(bench.site.path / "a.json").st_size == len(before)


async def test_a_plugin_with_auth_save_persists_one_of_several_credentials_into_their_file(tmp_path, tasks):
    def save(request: AuthSaveRequest) -> AuthSaveResponse:
        present = json.loads(bytes(request.file))
        token = json.loads(bytes(request.record.storage))["access_token"]
        place = int(request.record.id.rpartition("#")[2])
        present["tokens"][place] = token
        return AuthSaveResponse(record=record(present))

    bench = await Bench(tmp_path, renewed(), tasks, parsers={"acme": two}, saved=save).opened(tokens=["t0", "t1"])
    await bench.tick(300)
    assert bench.site.read("a.json")["tokens"] == ["new2", "new3"]
    assert bench.record("a.json#1").secret == Secret("new3")
    told = len(bench.site.told)
    await bench.site.directory.refresh([str(bench.site.path / "a.json")])
    assert len(bench.site.told) == told


async def test_the_scheduler_wakes_for_a_credential_that_is_due_and_for_one_that_is_new(tmp_path, tasks):
    done = asyncio.Event()

    def answer(request: AuthRefreshRequest) -> AuthRefreshResponse:
        done.set()
        return renewed()(request)

    bench = await Bench(tmp_path, answer, tasks).opened()
    running = tasks.start(bench.refresher.run(), name="run")
    await asyncio.sleep(0)
    path = bench.site.put("b.json", type="acme", refresh_token="r", expires_at=NOW_S)
    await bench.site.directory.refresh([path])
    async with asyncio.timeout(10):
        await done.wait()
    running.cancel()
    assert bench.asked[0].credential.id == "b.json"


async def test_a_wall_clock_that_is_set_back_puts_no_refresh_off_for_as_long(tmp_path, tasks):
    answers: list[Any] = [PluginError(ErrorBody(message="busy", http_status=503)), renewed()(None)]
    bench = await Bench(tmp_path, lambda request: answers.pop(0), tasks).opened(refresh_interval=900)
    await bench.tick(300)
    assert bench.due_in() == 300.0
    running = tasks.start(bench.refresher.run(), name="run")
    await asyncio.sleep(0)
    bench.site.now_s -= 3000.0
    path = bench.site.put("b.json", type="other")
    await bench.site.directory.refresh([path])  # wakes it, as the next check would
    for _ in range(3):
        await asyncio.sleep(0)
    assert bench.due_in() == 300.0
    await bench.tick(300)
    assert bench.record().secret == Secret("new2")
    bench.site.now_s -= 3000.0
    bench.refresher.schedule_all()
    assert bench.due_in() == 900.0
    running.cancel()


async def test_the_end_of_the_process_waits_for_a_token_that_comes_once_and_begins_no_other_refresh(tmp_path, tasks):
    asked, answers = asyncio.Event(), asyncio.Event()

    async def slow(request: AuthRefreshRequest) -> AuthRefreshResponse:
        asked.set()
        await answers.wait()
        return renewed()(request)

    bench = await Bench(tmp_path, slow, tasks).opened("a.json")
    flight = tasks.start(bench.refresher.refresh_now("a.json"), name="request")
    async with asyncio.timeout(10):
        await asked.wait()
        ending = asyncio.create_task(bench.refresher.finish())
        await asyncio.sleep(0)
        assert not ending.done()
        answers.set()
        await ending
        assert await flight
    assert bench.site.read("a.json")["refresh_token"] == "r2"
    assert await bench.refresher.refresh_now("a.json", started_s=1.0) is False
    assert len(bench.asked) == 1


async def test_a_plugin_that_never_answers_keeps_nobody_from_ending(tmp_path, tasks):
    asked = asyncio.Event()

    async def hang(request: AuthRefreshRequest) -> AuthRefreshResponse:
        asked.set()
        await asyncio.Event().wait()
        raise AssertionError

    bench = await Bench(tmp_path, hang, tasks).opened()
    tasks.start(bench.refresher.refresh_now("a.json"), name="request")
    async with asyncio.timeout(10):
        await asked.wait()
        await bench.refresher.finish(limit_s=0.01)
