"""What a scheduler plugin is shown of many credentials, and what it may answer."""

import pytest

from host.config.model import CompatKey, CompatProvider, Config, ModelEntry, Routing
from host.credentials.classify import classify
from host.credentials.cooldown import NO_CAUSE
from host.errors import RequestError
from host.pipeline.candidates import MAX_CANDIDATES
from pluginabi.errors import ErrorBody, PluginError
from pluginabi.payloads.executor import ExecutorResponse
from pluginabi.payloads.routing import SchedulerPickResponse
from tests.support.pipeline import FakePlugin, World, answering, client_request, compat_config, executor, world

PICK = "scheduler.pick"
QUOTA = classify(ErrorBody(http_status=429, retry_after_ms=60_000))
MANY = 600
WEIGHTED = Routing(strategy="weighted-round-robin")


def scheduler(answer=None, **fields) -> FakePlugin:
    return FakePlugin(id="s", hooks={PICK: answer or (lambda _: None)}, **fields)


def many(*plugins: FakePlugin, keys: int = MANY, **fields) -> World:
    return world(*plugins, config=compat_config(keys=tuple(f"k{number}" for number in range(keys)), **fields))


def shown(asked: FakePlugin) -> list[list[str]]:
    return [[it.id for it in seen.candidates] for seen in asked.seen(PICK)]


def ids(w: World) -> list[str]:
    return sorted(it.id for it in w.gateway.state.pool.credentials)


async def ask(w: World, session: str = "", **fields) -> None:
    await w.gateway.execute(client_request(headers={"X-Session-ID": session} if session else {}, **fields))


async def test_as_many_as_fit_are_all_shown_and_counted():
    asked = scheduler()
    w = many(executor(answering()), asked, keys=MAX_CANDIDATES)
    await ask(w)
    assert shown(asked) == [ids(w)]
    assert asked.seen(PICK)[0].candidates_total == MAX_CANDIDATES


async def test_of_more_a_scheduler_sees_a_part_in_the_order_of_ids_and_everybody_equally_often():
    asked = scheduler()
    w = many(executor(answering()), asked)
    for _ in range(75):
        await ask(w)
    seen = shown(asked)
    assert all(part == sorted(part) and len(set(part)) == MAX_CANDIDATES for part in seen)
    counts = {name: sum(name in part for part in map(set, seen)) for name in ids(w)}
    assert set(counts.values()) == {75 * MAX_CANDIDATES // MANY}
    assert {it.candidates_total for it in asked.seen(PICK)} == {MANY}


async def test_the_requests_of_one_session_are_shown_the_same_part_but_for_who_comes_and_goes():
    asked = scheduler()
    w = many(executor(answering()), asked)
    for session in ("s", "", "s", "other"):
        await ask(w, session)
    first, _, again, other = (set(part) for part in shown(asked))
    assert again == first
    assert other != first
    gone = min(first)
    w.gateway.state.pool.failed(w.gateway.state.pool.by_id[gone], "m", QUOTA, cause=NO_CAUSE)
    await ask(w, "s")
    later = set(shown(asked)[-1])
    assert (first - later, len(later - first)) == ({gone}, 1)
    assert asked.seen(PICK)[-1].candidates_total == MANY - 1


async def test_conversations_that_begin_alike_are_not_all_shown_the_same_part():
    asked = scheduler()
    w = many(executor(answering()), asked)
    for _ in range(3):
        await ask(w, body={"model": "m", "messages": [{"role": "user", "content": "hi"}]})
    assert set().union(*shown(asked)) == set(ids(w))


async def test_who_asks_for_all_candidates_gets_them():
    asked = scheduler(inputs={PICK: ["candidates:all"]})
    w = many(executor(answering()), asked)
    await ask(w)
    assert shown(asked) == [ids(w)]


async def test_whoever_is_free_may_be_named_whether_it_was_shown_or_not():
    def name_one_not_shown(seen):
        hidden = sorted({it.id for it in w.gateway.state.pool.credentials} - {it.id for it in seen.candidates})
        named.append(hidden[0])
        return SchedulerPickResponse(auth_id=hidden[0], reason="I know it")

    named: list[str] = []
    w = many(executor(answering()), scheduler(name_one_not_shown))
    await ask(w)
    [picked] = w.decisions("picked")
    assert (picked["credential"], picked["by"], picked["of"]) == (named[0], "s", MANY)


async def test_who_was_tried_or_rests_is_not_counted_and_cannot_be_named():
    asked = scheduler(lambda seen: SchedulerPickResponse(auth_id=first))
    upstream = executor(lambda it: PluginError("no", http_status=500) if len(upstream.seen("executor.execute")) == 1
                        else ExecutorResponse())  # fmt: skip
    w = many(upstream, asked, disable_cooling=True)
    first = ids(w)[0]
    await ask(w)
    assert [it.candidates_total for it in asked.seen(PICK)] == [MANY, MANY - 1]
    assert first not in shown(asked)[1]
    assert [it["why"] for it in w.decisions("pick_refused")] == ["tried"]


def tiers(*weights: int, low: int = 1) -> Config:
    """One key per weight of priority 1, one of priority 0."""
    providers = [
        CompatProvider(
            name=name, base_url=f"https://{name}.test", priority=priority, models=[ModelEntry(name="m")],
            api_key_entries=[CompatKey(api_key=f"{name}{n}", weight=weight) for n, weight in enumerate(given)],
        )
        for name, priority, given in (("high", 1, weights), ("low", 0, (low,)))
    ]  # fmt: skip
    return Config(openai_compatibility=providers, routing=WEIGHTED)


async def test_candidates_without_weight_are_not_shown_while_the_strategy_goes_by_weight():
    asked = scheduler()
    w = world(executor(answering()), asked, config=tiers(0, 2))
    await ask(w)
    [seen] = asked.seen(PICK)
    assert (len(seen.candidates), seen.candidates_total, seen.candidates[0].priority) == (1, 1, 1)


async def test_a_priority_without_any_weight_makes_room_for_the_next():
    asked = scheduler()
    w = world(executor(answering()), asked, config=tiers(0, 0))
    await ask(w)
    assert [it.priority for it in asked.seen(PICK)[0].candidates] == [0]


async def test_who_has_no_weight_is_no_candidate_in_the_trace():
    w = world(executor(answering()), config=tiers(0, 2, 3))
    await ask(w)
    [picked] = w.decisions("picked")
    weights = [w.gateway.state.pool.by_id[it].weight for it in picked["candidates"]]
    assert sorted(weights) == [2, 3]


@pytest.mark.parametrize("strategy", ["round-robin", "fill-first", "weighted-round-robin"])
async def test_a_strategy_that_a_scheduler_names_does_not_bring_back_who_has_no_weight(strategy):
    upstream = executor(answering())
    w = world(upstream, scheduler(lambda _: SchedulerPickResponse(delegate=strategy)), config=tiers(0, 2))
    for _ in range(3):
        await ask(w)
    used = {it.credential.handle for it in upstream.seen("executor.execute")}
    assert len(used) == 1
    assert w.gateway.state.pool.by_handle[used.pop()].weight == 2


async def test_nobody_waits_for_a_credential_that_has_no_weight():
    w = world(executor(answering()), config=tiers(0, low=0))
    pool = w.gateway.state.pool
    pool.failed(pool.credentials[0], "m", QUOTA, cause=NO_CAUSE)
    with pytest.raises(RequestError) as refused:
        await ask(w)
    assert (refused.value.body.code, refused.value.body.retry_after_ms) == ("auth_not_found", None)


async def test_a_strategy_that_a_scheduler_names_outranks_the_binding_of_a_session():
    answers = [None, None]
    upstream = executor(answering())
    w = many(
        upstream,
        scheduler(lambda _: answers.pop() if answers else SchedulerPickResponse(delegate="round-robin")),
        keys=3,
        routing=Routing(session_affinity=True),
    )
    for _ in range(5):
        await ask(w, "s")
    used = [it.credential.handle for it in upstream.seen("executor.execute")]
    assert used[0] == used[1]
    assert len(set(used[2:])) == 3
