"""scheduler.pick."""

import pytest

from host.config.model import CompatKey, CompatProvider, Config, ModelEntry, Routing
from host.pipeline.candidates import shown_attributes
from host.pipeline.pick import duration_text
from pluginabi.errors import PluginError, PluginTimeout, PluginTransportError
from pluginabi.payloads.executor import ExecutorResponse
from pluginabi.payloads.routing import SchedulerPickResponse
from tests.support.pipeline import FakePlugin, World, answering, client_request, compat_config, executor, world

PICK = "scheduler.pick"


def scheduler(answer, *, name: str = "s1", priority: int = 0, **fields) -> FakePlugin:
    return FakePlugin(
        id=name, hooks={PICK: answer if callable(answer) else lambda _: answer}, priority=priority, **fields
    )


def ids(w: World) -> list[str]:
    return sorted(credential.id for credential in w.gateway.state.pool.credentials)


def three_keys(*plugins: FakePlugin, **fields) -> World:
    return world(*plugins, config=compat_config(keys=("k1", "k2", "k3"), **fields))


async def used(w: World, upstream: FakePlugin) -> list[str]:
    by_handle = {credential.handle: credential.id for credential in w.gateway.state.pool.credentials}
    return [by_handle[seen.credential.handle] for seen in upstream.seen("executor.execute")]


async def test_S91_without_a_scheduler_the_built_in_strategy_picks():
    upstream = executor(answering())
    w = three_keys(upstream)
    await w.gateway.execute(client_request())
    assert await used(w, upstream) == ids(w)[:1]


async def test_the_credential_that_the_scheduler_names_is_used():
    upstream = executor(answering())
    w = three_keys(scheduler(lambda seen: SchedulerPickResponse(auth_id=seen.candidates[2].id)), upstream)
    await w.gateway.execute(client_request())
    assert await used(w, upstream) == ids(w)[2:]


async def test_S92_only_the_scheduler_of_highest_priority_is_asked():
    upstream = executor(answering())
    first, second = scheduler(None, name="s1", priority=2), scheduler(None, name="s2", priority=1)
    w = three_keys(first, second, upstream)
    await w.gateway.execute(client_request())
    assert (len(first.seen(PICK)), second.seen(PICK)) == (1, [])
    assert await used(w, upstream) == ids(w)[:1]


async def test_S93_a_schedulers_error_is_a_veto_with_its_status_and_marks_nobody():
    upstream = executor(answering())
    w = three_keys(scheduler(PluginError("closed", http_status=403)), upstream)
    with pytest.raises(PluginError) as raised:
        await w.gateway.execute(client_request())
    assert raised.value.http_status == 403
    assert upstream.seen("executor.execute") == []
    assert w.gateway.state.pool.book.empty


@pytest.mark.parametrize(
    "fault",
    [
        *(PluginTransportError("s1", PICK, phase=phase, cause="x") for phase in ("exit", "unavailable", "overload")),
        PluginTimeout("s1", PICK, timeout_ms=250),
    ],
    ids=["died", "down", "full", "silent"],
)
async def test_S94_a_broken_scheduler_leaves_it_to_the_built_in_strategy_and_nobody_asks_the_next_one(fault):
    upstream, second = executor(answering()), scheduler(None, name="s2", priority=-1)
    w = three_keys(scheduler(fault), second, upstream, routing=Routing(session_affinity=True))
    for _ in range(2):
        await w.gateway.execute(client_request(headers={"X-Session-ID": "s"}))
    assert await used(w, upstream) == ids(w)[:1] * 2
    assert second.seen(PICK) == []
    [failed, *_] = w.decisions("call")
    assert (failed["outcome"], failed["failed_open"]) == ("failed_open", True)
    assert w.decisions("picked")[-1]["by"] == "session"


async def test_where_the_operator_says_skip_an_error_of_the_scheduler_is_no_veto():
    upstream = executor(answering())
    w = three_keys(scheduler(PluginError("no", http_status=403), on_error={PICK: "skip"}), upstream)
    await w.gateway.execute(client_request())
    assert await used(w, upstream) == ids(w)[:1]


@pytest.mark.parametrize(
    "answer",
    [
        SchedulerPickResponse(auth_id="nobody"),
        SchedulerPickResponse(auth_id="nobody", delegate="fill-first"),
        SchedulerPickResponse(delegate="Round-Robin"),
        SchedulerPickResponse(delegate="best"),
    ],
)
async def test_D20_an_unknown_id_or_delegate_leaves_it_to_the_built_in_strategy(answer):
    upstream = executor(answering())
    w = three_keys(scheduler(answer), upstream)
    for _ in range(2):
        await w.gateway.execute(client_request())
    assert await used(w, upstream) == ids(w)[:2]
    assert len(w.decisions("pick_refused")) == 2


async def test_a_named_strategy_is_used_and_a_valid_id_beats_a_nonsense_delegate():
    upstream = executor(answering())
    w = three_keys(scheduler(SchedulerPickResponse(delegate=" fill-first ")), upstream)
    for _ in range(2):
        await w.gateway.execute(client_request())
    assert await used(w, upstream) == ids(w)[:1] * 2
    upstream = executor(answering())
    w = three_keys(scheduler(lambda s: SchedulerPickResponse(auth_id=s.candidates[1].id, delegate="?")), upstream)
    await w.gateway.execute(client_request())
    assert await used(w, upstream) == ids(w)[1:2]


async def test_the_scheduler_is_asked_again_after_each_failure_and_a_late_veto_yields_the_upstreams_error():
    def pick(seen):
        return None if seen.attempt is None else PluginError("enough", http_status=403)

    upstream = executor(lambda _: PluginError("boom", http_status=500, code="upstream_boom"))
    asked = scheduler(pick)
    w = three_keys(asked, upstream)
    with pytest.raises(PluginError) as raised:
        await w.gateway.execute(client_request())
    assert raised.value.code == "upstream_boom"
    assert [len(seen.candidates) for seen in asked.seen(PICK)] == [3, 2]


async def test_S96_D23_attributes_that_sound_like_secrets_are_withheld():
    given = {"api-key": "1", "Auth Token": "2", "region": "eu", "x.secret": "3", "proxyUrl": "4", "proxy_url": "5"}
    assert dict(shown_attributes(given)) == {"region": "eu", "proxyUrl": "4"}


async def test_S97_only_candidates_of_the_best_priority_are_shown_sorted_by_id():
    models = [ModelEntry(name="m")]
    config = Config(
        openai_compatibility=[
            CompatProvider(name=name, base_url=f"https://{name}.test", priority=priority, models=models,
                           api_key_entries=[CompatKey(api_key=f"{name}{n}") for n in range(2)])
            for name, priority in (("low", 1), ("b", 5), ("a", 5))
        ]
    )  # fmt: skip
    asked = scheduler(None)
    w = world(asked, executor(answering()), config=config)
    await w.gateway.execute(client_request())
    (seen,) = asked.seen(PICK)
    shown = [candidate.id for candidate in seen.candidates]
    assert shown == sorted(shown)
    assert {candidate.priority for candidate in seen.candidates} == {5}
    assert seen.providers[-1] == "openai-compatible-low"


async def test_S98_the_providers_are_folded_and_named_once_in_the_order_of_their_resolution():
    models = [ModelEntry(name="m")]
    config = Config(
        openai_compatibility=[
            CompatProvider(name=name, base_url="https://a.test", models=models) for name in ("Zed", "zed", "Acme")
        ]
    )
    asked = scheduler(None)
    await world(asked, executor(answering()), config=config).gateway.execute(client_request())
    assert asked.seen(PICK)[0].providers == ("openai-compatible-zed", "openai-compatible-acme")


async def test_a_candidate_carries_no_secret_and_no_metadata():
    asked = scheduler(None)
    w = three_keys(asked, executor(answering()))
    await w.gateway.execute(client_request(headers={"Authorization": "Bearer s"}))
    (seen,) = asked.seen(PICK)
    assert dict(seen.headers) == {}
    assert {candidate.status for candidate in seen.candidates} == {"active"}
    assert all(not candidate.metadata for candidate in seen.candidates)
    assert "k1" not in repr(seen)


async def test_F16_the_number_of_credentials_per_request_can_be_limited():
    upstream = executor(lambda _: PluginError("boom", http_status=500))
    w = three_keys(upstream, max_retry_credentials=1)
    with pytest.raises(PluginError):
        await w.gateway.execute(client_request())
    assert len(upstream.seen("executor.execute")) == 1


async def test_C21_C22_a_pool_of_models_starts_one_further_each_time_and_goes_on_inside_one_credential():
    config = Config(
        openai_compatibility=[
            CompatProvider(name="acme", base_url="https://a.test", api_key_entries=[CompatKey(api_key="k")],
                           models=[ModelEntry(name=name, alias="big") for name in ("d", "g")])
        ]
    )  # fmt: skip
    failing: set[str] = set()

    def execute(request):
        return PluginError("slow", http_status=429) if request.model in failing else ExecutorResponse()

    upstream = executor(execute)
    w = world(upstream, config=config)
    for _ in range(3):
        await w.gateway.execute(client_request(model="big"))
    assert [seen.model for seen in upstream.seen("executor.execute")] == ["d", "g", "d"]
    failing.add("g")
    await w.gateway.execute(client_request(model="big"))
    assert [seen.model for seen in upstream.seen("executor.execute")[3:]] == ["g", "d"]
    await w.gateway.execute(client_request(model="big"))
    assert [seen.model for seen in upstream.seen("executor.execute")[5:]] == ["d"]


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "1s"), (45, "45s"), (60, "1m0s"), (90, "1m30s"), (3600, "1h0m0s"), (7505, "2h5m5s")]
)
def test_a_reset_time_is_spelled_in_units(seconds, text):
    assert duration_text(seconds) == text
