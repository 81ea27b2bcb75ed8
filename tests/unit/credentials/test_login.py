"""Logins through plugins."""

import asyncio
from pathlib import Path
from typing import Any

import pytest

from host.credentials.editor import CredentialError
from host.credentials.login import LoginSessions, LoginStatus, redirect_of
from host.credentials.secret import Secret
from host.tasks import TaskGroup
from pluginabi.errors import ErrorBody, PluginError, PluginTransportError
from pluginabi.payloads.credentials import AuthLoginPollRequest, AuthLoginPollResponse, AuthLoginStartResponse
from tests.support.auth_plugins import ScriptedAuth, Slowly, record
from tests.support.auth_site import Site

CALLBACK = "http://127.0.0.1:1/callback"


class Bench:
    """Sessions over a scripted plugin; its answers to polls are taken from a list."""

    def __init__(self, directory: Path, *answers: Any, **started: Any) -> None:
        self.answers = list(answers)
        start = AuthLoginStartResponse(
            **{"url": "https://idp.test/login", "state": "s1", "metadata": {"n": 1}} | started
        )
        self.plugins = ScriptedAuth(start=lambda request: start, poll=lambda request: self.answers.pop(0))
        self.site = Site(directory, self.plugins)
        self.now_s = 100.0
        self.tasks = TaskGroup("test")
        self.logins = LoginSessions(self.plugins, self.site.editor, self.tasks, clock=lambda: self.now_s)

    async def begun(self) -> "Bench":
        await self.site.opened()
        await self.logins.start("Acme", CALLBACK)
        return self

    async def poll(self, state: str = "s1") -> LoginStatus:
        async with asyncio.timeout(10):
            return await self.logins.poll(state)

    @property
    def polls(self) -> list[AuthLoginPollRequest]:
        return [request for request in self.plugins.seen if isinstance(request, AuthLoginPollRequest)]


PENDING = AuthLoginPollResponse()
SUCCESS = AuthLoginPollResponse(status="success", records=[record({"access_token": "t"}, file_name="a.json")])


async def test_a_login_goes_from_the_address_over_waiting_to_a_stored_credential(tmp_path):
    bench = Bench(tmp_path, PENDING, AuthLoginPollResponse(status="strange"), SUCCESS)
    await bench.site.opened()
    started = await bench.logins.start(" ACME ", CALLBACK)
    assert (started.provider, started.url, started.state) == ("acme", "https://idp.test/login", "s1")
    assert bench.plugins.seen[0].callback_url == CALLBACK
    assert [(await bench.poll()).status for _ in range(2)] == ["wait", "wait"]
    assert await bench.poll() == LoginStatus("ok", ids=("a.json",))
    assert bench.site.manager.by_id["a.json"].secret == Secret("t")
    assert [request.metadata for request in bench.polls] == [{"n": 1}] * 3
    assert await bench.poll() == LoginStatus("ok", ids=("a.json",))
    assert len(bench.polls) == 3


async def test_what_the_browser_brought_is_handed_to_the_plugin_in_the_next_poll(tmp_path):
    bench = await Bench(tmp_path, PENDING, SUCCESS).begun()
    await bench.poll()
    bench.logins.callback("s1", code="c0de", provider="ACME")
    await bench.poll()
    assert [(request.code, request.error, request.state) for request in bench.polls] == [
        (None, None, "s1"),
        ("c0de", None, "s1"),
    ]
    refused = await Bench(tmp_path, AuthLoginPollResponse(status="error", message="denied")).begun()
    refused.logins.callback("s1", error="access_denied")
    assert await refused.poll() == LoginStatus("error", "denied")
    assert refused.polls[0].error == "access_denied"


@pytest.mark.parametrize("state", ["a/b", "..", "x..y", "x" * 129, ""])
async def test_M107_a_plugin_whose_state_cannot_be_used_is_a_bad_gateway(tmp_path, state):
    with pytest.raises(CredentialError) as caught:
        await Bench(tmp_path, state=state).logins.start("acme", CALLBACK)
    assert (caught.value.http_status, str(caught.value)) == (502, "invalid oauth state")


async def test_a_state_that_is_in_use_is_refused_and_free_again_when_its_login_has_ended(tmp_path):
    bench = await Bench(tmp_path).begun()
    with pytest.raises(CredentialError) as caught:
        await bench.logins.start("acme", CALLBACK)
    assert caught.value.http_status == 502
    bench.now_s += 30 * 60
    await bench.logins.start("acme", CALLBACK)


@pytest.mark.parametrize(
    ("provider", "status", "message"),
    [("other", 404, "no plugin logs in to 'other'"), ("a_b", 400, "unsupported provider"), (" ", 400, "unsupported")],
)
async def test_a_provider_that_nobody_logs_in_to_is_refused(tmp_path, provider, status, message):
    with pytest.raises(CredentialError, match=message) as caught:
        await Bench(tmp_path).logins.start(provider, CALLBACK)
    assert caught.value.http_status == status


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (PluginError(ErrorBody(message="no client id", http_status=422)), 422),
        (PluginTransportError("p", "auth.login.start", phase="unavailable", cause="gone"), 502),
    ],
)
async def test_a_plugin_that_cannot_begin_keeps_its_status_and_reason(tmp_path, error, status):
    bench = Bench(tmp_path)
    bench.plugins.start = lambda request: error
    with pytest.raises(CredentialError, match="failed to generate authorization url") as caught:
        await bench.logins.start("acme", CALLBACK)
    assert caught.value.http_status == status


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        ({"state": "", "code": "c"}, 400, "state is required"),
        ({"state": "a/b", "code": "c"}, 400, "invalid state"),
        ({"state": "s1"}, 400, "code or error is required"),
        ({"state": "other", "code": "c"}, 404, "unknown or expired state"),
        ({"state": "s1", "code": "c", "provider": "a b"}, 400, "unsupported provider"),
        ({"state": "s1", "code": "c", "provider": "other"}, 400, "provider does not match state"),
    ],
)
async def test_M139_a_callback_that_makes_no_sense_is_refused(tmp_path, arguments, status, message):
    bench = await Bench(tmp_path).begun()
    with pytest.raises(CredentialError) as caught:
        bench.logins.callback(arguments.pop("state"), **arguments)
    assert (caught.value.http_status, str(caught.value)) == (status, message)


async def test_M139_a_callback_for_a_login_that_is_over_is_a_conflict_with_its_reason(tmp_path):
    failed = await Bench(tmp_path, AuthLoginPollResponse(status="error", message="denied")).begun()
    await failed.poll()
    done = await Bench(tmp_path, SUCCESS).begun()
    await done.poll()
    for bench, message in ((failed, "denied"), (done, "oauth flow is not pending")):
        with pytest.raises(CredentialError) as caught:
            bench.logins.callback("s1", code="c")
        assert (caught.value.http_status, str(caught.value)) == (409, message)


async def test_M139_an_expired_login_is_unknown(tmp_path):
    bench = await Bench(tmp_path).begun()
    bench.now_s += 30 * 60
    with pytest.raises(CredentialError) as caught:
        bench.logins.callback("s1", code="c")
    assert caught.value.http_status == 404
    assert await bench.poll() == LoginStatus("error", "unknown or expired state")


async def test_B12_M106_a_login_that_cannot_be_stored_as_a_whole_is_an_error_that_stays(tmp_path):
    records = [record({"access_token": "1"}, file_name="a.json"), record({"proxy_url": "ftp://x"}, file_name="b.json")]
    bench = await Bench(tmp_path, AuthLoginPollResponse(status="success", records=records)).begun()
    expected = LoginStatus("error", "Failed to save authentication tokens")
    assert [await bench.poll(), await bench.poll()] == [expected, expected]
    assert (bench.site.ids(), len(bench.polls)) == ([], 1)


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (PluginError(ErrorBody(message="boom", http_status=500)), "boom"),
        (AuthLoginPollResponse(status="error"), "Authentication failed"),
        (AuthLoginPollResponse(status="success"), "Authentication failed"),
    ],
)
async def test_a_login_that_failed_says_why_and_is_not_asked_about_again(tmp_path, answer, message):
    bench = await Bench(tmp_path, answer).begun()
    assert [await bench.poll(), await bench.poll()] == [LoginStatus("error", message)] * 2


async def test_a_plugin_that_is_away_for_a_moment_does_not_end_the_login(tmp_path):
    away = PluginTransportError("p", "auth.login.poll", phase="unavailable", cause="restarting")
    bench = await Bench(tmp_path, away, SUCCESS).begun()
    assert [(await bench.poll()).status, (await bench.poll()).status] == ["wait", "ok"]


async def test_a_plugin_is_not_polled_before_the_time_it_said_and_at_once_when_the_browser_is_back(tmp_path):
    slower = AuthLoginPollResponse(poll_after_ms=10_000, metadata={"n": 2})
    bench = await Bench(tmp_path, slower, PENDING, SUCCESS, poll_after_ms=5000).begun()
    assert (await bench.poll()).status == "wait" and bench.polls == []
    bench.now_s += 5
    await bench.poll()
    bench.now_s += 9
    await bench.poll()
    assert len(bench.polls) == 1
    bench.now_s += 1
    await bench.poll()
    assert [request.metadata for request in bench.polls] == [{"n": 1}, {"n": 2}]
    bench.logins.callback("s1", code="c")
    assert (await bench.poll()).status == "ok"


async def test_two_who_poll_at_the_same_time_ask_the_plugin_once(tmp_path):
    slowly = Slowly(lambda _: SUCCESS)
    bench = await Bench(tmp_path).begun()
    bench.plugins.poll = slowly
    async with asyncio.timeout(10):
        first = asyncio.create_task(bench.poll())
        await slowly.going.wait()
        assert await bench.poll() == LoginStatus("wait")
        slowly.go_on.set()
        assert (await first).status == "ok"


async def test_a_login_that_was_cancelled_meanwhile_stores_nothing(tmp_path):
    slowly = Slowly(lambda _: SUCCESS)
    bench = await Bench(tmp_path).begun()
    bench.plugins.poll = slowly
    async with asyncio.timeout(10):
        polling = asyncio.create_task(bench.poll())
        await slowly.going.wait()
        assert bench.logins.cancel("s1") is True
        assert bench.logins.cancel("s1") is False
        slowly.go_on.set()
        assert (await polling).status == "error"
    assert bench.site.ids() == []


async def test_a_login_that_succeeded_is_remembered_for_a_minute(tmp_path):
    bench = await Bench(tmp_path, SUCCESS).begun()
    await bench.poll()
    bench.now_s += 59
    assert (await bench.poll()).status == "ok"
    bench.now_s += 1
    assert await bench.poll() == LoginStatus("error", "unknown or expired state")


def test_the_address_that_a_browser_was_sent_to_is_taken_apart():
    found = redirect_of("http://127.0.0.1:1/cb?state=s&code=c%2B1&error_description=&provider=acme")
    assert (found.state, found.code, found.error, found.provider) == ("s", "c+1", "", "acme")
    for text in ("no address", "http://[", "http://127.0.0.1/cb"):
        with pytest.raises(CredentialError, match="invalid redirect_url"):
            redirect_of(text)


class Slow:
    """A plugin that answers a poll when it is told to."""

    def __init__(self, answer: Any = SUCCESS) -> None:
        self.asked, self.go_on = asyncio.Event(), asyncio.Event()
        self.answer = answer

    async def __call__(self, request: AuthLoginPollRequest) -> AuthLoginPollResponse:
        self.asked.set()
        await self.go_on.wait()
        return self.answer


async def test_who_asks_and_goes_away_takes_nothing_of_what_the_provider_gave_out_along(tmp_path):
    bench, slow = await Bench(tmp_path).begun(), Slow()
    bench.plugins.poll = slow
    async with asyncio.timeout(10):
        polling = asyncio.create_task(bench.poll())
        await slow.asked.wait()
        polling.cancel()
        with pytest.raises(asyncio.CancelledError):
            await polling
        slow.go_on.set()
        await bench.tasks.join()
    assert await bench.poll() == LoginStatus("ok", ids=("a.json",))
    assert len(bench.polls) == 1


async def test_a_plugin_that_takes_its_time_is_waited_for_over_several_questions(tmp_path):
    bench, slow = await Bench(tmp_path).begun(), Slow()
    bench.plugins.poll = slow
    bench.logins = LoginSessions(bench.plugins, bench.site.editor, bench.tasks, poll_wait_s=0.0)
    await bench.logins.start("acme", CALLBACK)
    assert [await bench.poll(), await bench.poll()] == [LoginStatus("wait")] * 2
    slow.go_on.set()
    async with asyncio.timeout(10):
        await bench.tasks.join()
    assert (await bench.poll()).status == "ok"
    assert len(bench.polls) == 1


async def test_a_login_cancelled_before_its_credentials_are_written_stores_none_of_them(tmp_path):
    bench = Bench(tmp_path, SUCCESS)
    cancelled: list[bool] = []
    bench.plugins.saved = lambda request: cancelled.append(bench.logins.cancel("s1"))
    await bench.begun()
    assert await bench.poll() == LoginStatus("error", "the login was cancelled")
    assert (cancelled, bench.site.ids(), list(bench.site.path.iterdir())) == ([True], [], [])


async def test_a_login_whose_credentials_are_being_written_cannot_be_cancelled_any_more(tmp_path, monkeypatch):
    bench = await Bench(tmp_path, SUCCESS).begun()
    cancelled: list[bool] = []
    put = bench.site.directory.put

    async def cancelling(*arguments: Any) -> Any:
        cancelled.append(bench.logins.cancel("s1"))
        return await put(*arguments)

    monkeypatch.setattr(bench.site.directory, "put", cancelling)
    assert (await bench.poll()).status == "ok"
    assert (cancelled, bench.site.ids()) == ([False], ["a.json"])


async def test_the_browser_that_comes_back_during_a_question_is_not_kept_waiting_by_its_answer(tmp_path):
    bench, slow = await Bench(tmp_path).begun(), Slow(AuthLoginPollResponse(poll_after_ms=60_000))
    bench.plugins.poll = slow
    async with asyncio.timeout(10):
        polling = asyncio.create_task(bench.poll())
        await slow.asked.wait()
        bench.logins.callback("s1", code="c0de")
        slow.go_on.set()
        assert (await polling).status == "wait"
        slow.answer = SUCCESS
        assert (await bench.poll()).status == "ok"
    assert [request.code for request in bench.polls] == [None, "c0de"]


LEAK = "the provider said: refresh_token=rt-4f9a81c2, Authorization: Bearer abcdef0123456789"


@pytest.mark.parametrize(
    "answer",
    [PluginError(ErrorBody(message=LEAK, code="x")), AuthLoginPollResponse(status="error", message=LEAK)],
    ids=["raised", "answered"],
)
async def test_what_a_plugin_says_of_a_login_that_failed_is_shown_without_tokens(tmp_path, answer):
    bench = await Bench(tmp_path, answer).begun()
    shown = await bench.poll()
    assert shown.status == "error" and shown.error.startswith("the provider said: ")
    assert "rt-4f9a81c2" not in shown.error and "abcdef0123456789" not in shown.error
