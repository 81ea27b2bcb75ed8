"""Rounds over the credentials: who is tried how often, when there is a wait, and what the client gets in the end."""

import asyncio

import pytest

from host.config.model import CompatKey, CompatProvider, Config, ErrorRuleEntry, ModelEntry
from host.credentials.retry import MAX_WAITING
from host.errors import RequestError
from pluginabi.errors import PluginError, PluginTransportError
from pluginabi.payloads.executor import ExecutorExhaustedResponse, ExecutorResponse
from tests.support.pipeline import FakePlugin, World, answering, client_request, compat_config, executor, world

EXECUTE = "executor.execute"
OFF = -1
"""transient-error-cooldown-seconds: no rest after a passing failure."""


def failing(**fields) -> FakePlugin:
    return executor(lambda _: PluginError("no", **{"http_status": 500, **fields}))


def named(**providers) -> Config:
    """One provider with one key for each name; its limit of rounds is the value."""
    entries = [
        CompatProvider(
            name=name, base_url=f"https://{name}.test", request_retry=limit, models=[ModelEntry(name="m")],
            api_key_entries=[CompatKey(api_key=name)],
        )
        for name, limit in providers.items()
    ]  # fmt: skip
    return Config(openai_compatibility=entries, transient_error_cooldown_seconds=OFF)


async def refused(w: World, **fields) -> PluginError | RequestError:
    with pytest.raises((PluginError, RequestError)) as raised:
        await w.gateway.execute(client_request(**fields))
    return raised.value


def calls(w: World, upstream: FakePlugin) -> dict[str, int]:
    by_handle = {it.handle: it.label for it in w.gateway.state.pool.credentials}
    found: dict[str, int] = {}
    for seen in upstream.seen(EXECUTE):
        label = by_handle[seen.credential.handle]
        found[label] = found.get(label, 0) + 1
    return found


async def test_12_3_each_credential_takes_part_in_as_many_rounds_as_it_may():
    upstream = failing()
    w = world(upstream, config=named(a=3, b=2, c=2))
    await refused(w)
    assert calls(w, upstream) == {"a": 4, "b": 3, "c": 3}


async def test_12_3_with_a_cap_per_round_the_last_round_is_for_those_who_may():
    upstream = failing()
    config = named(a=1, b=1, c=1, d=2)
    w = world(upstream, config=Config(**{**_fields(config), "max_retry_credentials": 3}))
    await refused(w)
    by_handle = {it.handle: it.label for it in w.gateway.state.pool.credentials}
    seen = [by_handle[it.credential.handle] for it in upstream.seen(EXECUTE)]
    assert (len(seen), seen[-1]) == (7, "d")


def _fields(config: Config) -> dict:
    return {name: getattr(config, name) for name in config.__struct_fields__}


async def test_F15_with_cooling_off_a_limit_is_waited_out_as_long_as_the_upstream_says():
    upstream = failing(http_status=429, retry_after_ms=5)
    w = world(upstream, config=compat_config(disable_cooling=True, request_retry=3, max_retry_interval="1s"))
    await refused(w)
    assert len(upstream.seen(EXECUTE)) == 4
    assert all(0.005 <= wait <= 0.005 * 1.25 for wait in w.slept_s)


@pytest.mark.parametrize(("status", "cap"), [(429, 1), (503, 0), (503, 1)])
async def test_with_cooling_off_no_upstream_is_asked_again_before_the_time_that_it_named(status, cap):
    upstream = failing(http_status=status, retry_after_ms=2_000)
    rounds = {"request_retry": 2, "max_retry_interval": "30s", "max_retry_credentials": cap}
    w = world(upstream, config=compat_config(disable_cooling=True, **rounds))
    await refused(w)
    assert len(upstream.seen(EXECUTE)) == 3
    assert [2 <= wait <= 2.5 for wait in w.slept_s] == [True, True]


async def test_F17_a_credentials_own_limit_of_rounds_beats_the_common_one():
    upstream = failing()
    config = Config(**{**_fields(named(a=0, b=None)), "request_retry": 2})
    w = world(upstream, config=config)
    await refused(w)
    assert calls(w, upstream) == {"a": 1, "b": 3}


async def test_F19_a_rest_longer_than_the_longest_wait_is_not_waited_for():
    upstream = failing()
    w = world(upstream, config=compat_config(request_retry=3, max_retry_interval="30s"))
    error = await refused(w)
    assert (error.body.http_status, len(upstream.seen(EXECUTE)), w.slept_s) == (500, 1, [])
    assert w.decisions("round_refused") == [{"why": "longer than max-retry-interval", "after_s": 60}]


async def test_F20_without_a_longest_wait_there_are_only_rounds_that_need_none():
    upstream = failing(http_status=429, retry_after_ms=10)
    w = world(upstream, config=compat_config(request_retry=3))
    await refused(w)
    assert len(upstream.seen(EXECUTE)) == 1
    upstream = failing()
    w = world(upstream, config=compat_config(request_retry=3, transient_error_cooldown_seconds=OFF))
    await refused(w)
    assert (len(upstream.seen(EXECUTE)), w.slept_s) == (4, [])


async def test_a_rest_that_ends_soon_is_waited_for_with_a_little_more_and_then_the_request_succeeds():
    answers = [PluginError("slow", http_status=429, retry_after_ms=8_000), ExecutorResponse()]
    upstream = executor(lambda _: answers[len(upstream.seen(EXECUTE)) - 1])
    w = world(upstream, config=compat_config(request_retry=1, max_retry_interval="30s"))
    assert (await w.gateway.execute(client_request())).status == 200
    [wait_s] = w.slept_s
    assert 8 <= wait_s <= 10
    assert w.decisions("round")[0]["number"] == 1


async def test_a_wait_never_goes_beyond_the_longest_one():
    answers = [PluginError("slow", http_status=429, retry_after_ms=30_000), ExecutorResponse()]
    upstream = executor(lambda _: answers[len(upstream.seen(EXECUTE)) - 1])
    w = world(upstream, config=compat_config(request_retry=1, max_retry_interval="30s"))
    await w.gateway.execute(client_request())
    assert w.slept_s == [30]


async def test_a_request_that_finds_everybody_resting_waits_too():
    answers = [PluginError("slow", http_status=429, retry_after_ms=8_000), ExecutorResponse()]
    upstream = executor(lambda _: answers[len(upstream.seen(EXECUTE)) - 1])
    w = world(upstream, config=compat_config(max_retry_interval="30s"))
    await refused(w)
    state = w.gateway.state
    w.gateway.state = build_again(w, request_retry=1)
    assert (await w.gateway.execute(client_request())).status == 200
    assert state.pool.book is w.gateway.state.pool.book


def build_again(w: World, **fields):
    from host.pipeline.state import build_state

    state = w.gateway.state
    config = Config(**{**_fields(state.config), **fields})
    return build_state(config, state.plugins, previous=state)


async def test_cancelling_a_request_ends_its_wait():
    upstream = failing(http_status=429, retry_after_ms=8_000)
    w = world(upstream, config=compat_config(request_retry=1, max_retry_interval="30s"))
    waiting = asyncio.Event()

    async def sleep(_: float) -> None:
        waiting.set()
        await asyncio.Event().wait()

    w.gateway.state.pool.health.sleep = sleep
    task = asyncio.create_task(w.gateway.execute(client_request()))
    async with asyncio.timeout(5):
        await waiting.wait()
    assert w.gateway.state.pool.health.waiting == 1
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert w.gateway.state.pool.health.waiting == 0
    assert w.completed[-1].outcome == "canceled"


async def test_only_so_many_requests_wait_at_once():
    upstream = failing(http_status=429, retry_after_ms=8_000)
    w = world(upstream, config=compat_config(request_retry=1, max_retry_interval="30s"))
    w.gateway.state.pool.health.waiting = MAX_WAITING
    assert (await refused(w)).body.http_status == 429
    assert w.slept_s == []


@pytest.mark.parametrize("status", [400, 401, 404, 422])
async def test_what_does_not_pass_by_itself_gets_no_further_round(status):
    upstream = failing(http_status=status)
    w = world(upstream, config=compat_config(disable_cooling=True, request_retry=3, max_retry_interval="30s"))
    await refused(w)
    assert len(upstream.seen(EXECUTE)) == 1


async def test_F11_F12_P127_a_fault_of_the_request_stops_at_once_and_marks_nobody():
    upstream = failing(http_status=422)
    w = world(upstream, config=compat_config(keys=("k1", "k2"), request_retry=3))
    error = await refused(w)
    assert (error.body.http_status, len(upstream.seen(EXECUTE))) == (422, 1)
    assert w.gateway.state.pool.book.empty


async def test_a_plugin_that_broke_gets_no_further_round():
    upstream = executor(lambda _: PluginTransportError("upstream", EXECUTE, phase="unavailable", cause="x"))
    w = world(upstream, config=compat_config(keys=("k1", "k2"), request_retry=3))
    with pytest.raises(PluginTransportError):
        await w.gateway.execute(client_request())
    assert len(upstream.seen(EXECUTE)) == 1


async def test_F16_a_cap_of_one_leaves_one_call_per_round():
    upstream = failing()
    w = world(upstream, config=compat_config(keys=("k1", "k2"), max_retry_credentials=1))
    await refused(w)
    assert len(upstream.seen(EXECUTE)) == 1


async def test_F14_with_cooling_off_a_refused_credential_is_used_by_the_next_request():
    upstream = failing(http_status=403)
    w = world(upstream, config=compat_config(disable_cooling=True))
    await refused(w)
    await refused(w)
    assert len(upstream.seen(EXECUTE)) == 2


async def test_F25_a_client_that_leaves_during_an_attempt_marks_nobody():
    entered = asyncio.Event()

    async def execute(_):
        entered.set()
        await asyncio.Event().wait()

    w = world(executor(execute))
    task = asyncio.create_task(w.gateway.execute(client_request()))
    async with asyncio.timeout(5):
        await entered.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    health = w.gateway.state.pool.health
    assert health.book.empty
    assert health.tallies.of(w.gateway.state.pool.credentials[0].id) == (0, 0)


async def test_results_are_counted_once_per_attempt():
    answers = [PluginError("no", http_status=500), ExecutorResponse()]
    upstream = executor(lambda _: answers[min(len(upstream.seen(EXECUTE)), 2) - 1])
    w = world(upstream, config=compat_config(keys=("k1", "k2")))
    for _ in range(3):
        await w.gateway.execute(client_request())
    tallies = w.gateway.state.pool.health.tallies
    assert sorted(tallies.of(it.id) for it in w.gateway.state.pool.credentials) == [(0, 1), (3, 0)]


async def test_an_operators_rule_on_a_key_decides_what_its_error_means():
    rule = ErrorRuleEntry(status=500, action="stop", match=["No"])
    provider = CompatProvider(
        name="acme", base_url="https://a.test", models=[ModelEntry(name="m")], request_scoped_errors=[rule],
        api_key_entries=[CompatKey(api_key="a"), CompatKey(api_key="b")],
    )  # fmt: skip
    upstream = failing()
    w = world(upstream, config=Config(openai_compatibility=[provider]))
    await refused(w)
    assert len(upstream.seen(EXECUTE)) == 1
    assert w.gateway.state.pool.book.empty


async def test_a_schedulers_veto_is_final():
    scheduler = FakePlugin(id="s", hooks={"scheduler.pick": lambda _: PluginError("closed", http_status=503)})
    w = world(scheduler, executor(answering()), config=compat_config(request_retry=3, max_retry_interval="30s"))
    await refused(w)
    assert len(scheduler.seen("scheduler.pick")) == 1


async def test_a_schedulers_veto_after_a_failure_is_final_too():
    """The upstream's error is the answer; nobody is tried again against the scheduler's word."""

    def pick(seen):
        return None if seen.attempt is None else PluginError("enough", http_status=403)

    scheduler = FakePlugin(id="s", hooks={"scheduler.pick": pick})
    upstream = failing(http_status=503, retry_after_ms=2_000)
    config = compat_config(keys=("k1", "k2"), request_retry=3, max_retry_interval="30s")
    w = world(scheduler, upstream, config=config)
    assert (await refused(w)).body.http_status == 503
    assert (len(scheduler.seen("scheduler.pick")), len(upstream.seen(EXECUTE)), w.slept_s) == (2, 1, [])


def helper(answer) -> FakePlugin:
    """An executor with a limit, and an opinion about what to do then."""
    plugin = failing(http_status=429, retry_after_ms=60_000)
    plugin.handle.hooks["executor.on_exhausted"] = lambda _: answer
    return FakePlugin(id="upstream", hooks=plugin.handle.hooks, providers=["openai-compatible-*"])


async def test_a_providers_plugin_may_ask_for_one_more_round_which_ends_its_blocks():
    upstream = helper(ExecutorExhaustedResponse(retry=True, retry_after_ms=2_000))
    w = world(upstream, config=compat_config(keys=("k1", "k2"), max_retry_interval="10s"))
    await refused(w)
    [asked] = upstream.seen("executor.on_exhausted")
    assert (asked.provider, asked.model, asked.error.http_status) == ("openai-compatible-acme", "m", 429)
    assert len(upstream.seen(EXECUTE)) == 4
    assert 2 <= w.slept_s[0] <= 2.5


@pytest.mark.parametrize(
    "answer",
    [
        None,
        ExecutorExhaustedResponse(),
        ExecutorExhaustedResponse(retry=True, retry_after_ms=11_000),
        PluginError("do not know", http_status=500),
    ],
)
async def test_without_a_usable_answer_of_the_plugin_the_error_stays_what_it_was(answer):
    upstream = helper(answer)
    w = world(upstream, config=compat_config(max_retry_interval="10s"))
    error = await refused(w)
    assert (error.body.http_status, len(upstream.seen(EXECUTE)), w.slept_s) == (429, 1, [])
