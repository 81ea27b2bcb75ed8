"""Random lives of a pool: results, attempts that outlive a reload, time, resets, and what other nodes and plugins know.
What is free is compared with a plain table of all blocks.

The table knows the rules and nothing else: no shelves, no positions, no queue. `make lives` runs more and longer ones.
"""

import os
from dataclasses import dataclass, field
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from host.config.model import CompatKey, CompatProvider, Config, ErrorRuleEntry, ModelEntry
from host.credentials.classify import PASSING, Verdict, classify
from host.credentials.cooldown import BACKOFF_MAX_LEVEL, FORGET_AFTER_S, NO_CAUSE
from host.credentials.pool import CredentialPool, Exhausted
from host.credentials.records import Credential, CredentialChange
from host.credentials.retry import Search
from host.credentials.select import STRATEGIES
from host.pipeline.state import EXECUTE, GatewayState, Plan, build_state
from pluginabi.errors import ErrorBody
from tests.support.pipeline import Clock, answering, executor, snapshot

MODELS = ("m", "pool")
UPSTREAMS = {"m": ("m-1",), "pool": ("m-1", "d")}
WHOLE = ""
LIVES = int(os.environ.get("LIVES", "0"))
ERRORS = {
    "limit": ErrorBody(http_status=429),
    "limit with a time": ErrorBody(http_status=429, retry_after_ms=30_000),
    "limit with a long time": ErrorBody(http_status=429, retry_after_ms=400_000),
    "limit of the account": ErrorBody(http_status=429, scope="credential", retry_after_ms=50_000),
    "refused": ErrorBody(http_status=401),
    "refused account": ErrorBody(http_status=401, scope="credential"),
    "busy": ErrorBody(http_status=503),
    "busy with a time": ErrorBody(http_status=503, retry_after_ms=7_000),
    "unknown model": ErrorBody(http_status=404),
    "unsupported model": ErrorBody(http_status=400, code="model_not_supported"),
    "challenge": ErrorBody(http_status=403, headers={"cf-mitigated": ["challenge"]}),
    "wrong request": ErrorBody(http_status=422),
    "cut": ErrorBody(http_status=502, scope="connection"),
}
OFTEN = ("limit", "limit with a time", "busy", "busy with a time")
"""Whose order matters: what the upstream says, and what is guessed."""
KINDS = (*OFTEN, *OFTEN, *OFTEN, *sorted(ERRORS))
RULES: dict[int, Any] = {
    0: {},
    1: {"status": 429, "action": "stop"},
    2: {"status": 503, "action": "continue-and-cooldown"},
    3: {"status": 422, "action": "stop-and-cooldown"},
}
"""An operator's rule, by the number that a reload draws."""


@dataclass
class Open:
    """An attempt that is not over; `pool` is the one that its request began with."""

    pool: CredentialPool
    credential: Credential
    upstream: str
    began_s: float


@dataclass
class Row:
    """One block of the table."""

    since_s: float
    until_s: float
    reason: str
    quota: bool
    exact: bool
    forced: bool
    level: int = 0


@dataclass
class Table:
    """Every block, by credential and model; and what was counted."""

    rows: dict[tuple[str, str], Row] = field(default_factory=dict)
    counts: dict[str, list[int]] = field(default_factory=dict)

    def fail(self, credential: str, model: str, verdict: Verdict, now_s: float) -> None:
        if not verdict.rests:
            return
        key = (credential, WHOLE if verdict.whole_credential else model)
        row = self.rows.get(key)
        open_row = row if row is not None and row.until_s > now_s else None
        level = row.level if row is not None else 0
        rest_s = verdict.cooldown_s
        if verdict.backoff:
            rest_s = max(min(2.0**level, verdict.at_most_s), rest_s)
        until_s = now_s + rest_s
        if open_row is not None:
            other = open_row.reason != verdict.reason
            if verdict.backoff and (not other or open_row.until_s >= until_s):
                return
            believed = verdict.exact and not open_row.exact and (not other or open_row.reason in PASSING)
            if until_s < open_row.until_s and not believed:
                if other:
                    return
                until_s = open_row.until_s
        if verdict.backoff:
            level = min(level + 1, BACKOFF_MAX_LEVEL)
        self.rows[key] = Row(now_s, until_s, verdict.reason, verdict.quota, verdict.exact, verdict.forced, level)

    def succeed(self, credential: str, model: str, *, began_s: float, seen_s: float, left: bool, now_s: float) -> None:
        for key in (model, WHOLE):
            row = self.rows.get((credential, key))
            if row is None:
                continue
            guessed = key != WHOLE and not row.exact
            disproved = row.since_s < began_s or (row.since_s <= seen_s and (guessed or (left and row.quota)))
            if disproved or row.until_s <= now_s:
                del self.rows[credential, key]

    def forget(self, now_s: float) -> None:
        """A level is remembered for a while, everything else until the end of the block."""
        gone = [key for key, row in self.rows.items() if row.until_s + (FORGET_AFTER_S if row.level else 0) <= now_s]
        for key in gone:
            del self.rows[key]

    def drop(self, credential: str, *, but_forced: bool = False) -> None:
        for key in [key for key, row in self.rows.items() if key[0] == credential and not (but_forced and row.forced)]:
            del self.rows[key]

    def until_s(self, credential: str, models: tuple[str, ...], now_s: float) -> tuple[float, bool] | None:
        """Until when a credential is blocked for an alias, and whether by a limit; None: it is free."""
        found = {it: self.rows.get((credential, it)) for it in (WHOLE, *models)}
        active = {it: row for it, row in found.items() if row is not None and row.until_s > now_s}
        own = [active[it] for it in models] if all(it in active for it in models) else []
        blocks = [row for row in (active.get(WHOLE), min(own, key=lambda row: row.until_s, default=None)) if row]
        if not blocks:
            return None
        longest = max(blocks, key=lambda row: row.until_s)
        return longest.until_s, longest.quota


class PoolLife(RuleBasedStateMachine):
    """One process: its clock turns, its configuration changes, requests succeed and fail."""

    def __init__(self) -> None:
        super().__init__()
        self.clock = Clock()
        self.table = Table()
        self.keys: dict[str, dict[str, Any]] = {}
        self.cooling_disabled = False
        self.transient = 0
        self.state: GatewayState
        self.open: list[Open] = []

    @initialize(count=st.integers(1, 5))
    def start(self, count: int) -> None:
        self.keys = {f"k{number}": {"priority": 0} for number in range(count)}
        self.state = build_state(self.config(), self.plugins(), clock=self.clock)

    def plugins(self) -> Any:
        return snapshot(executor(answering()))

    def config(self) -> Config:
        models = [ModelEntry(name=name, alias=alias) for alias in MODELS for name in UPSTREAMS[alias]]
        providers = [
            CompatProvider(
                name=f"p-{name}", base_url="https://a.test", models=models, responses=True,
                api_key_entries=[CompatKey(api_key=name, weight=settings_.get("weight"))],
                priority=settings_["priority"], disable_cooling=settings_.get("disable_cooling"),
                disabled=settings_.get("disabled", False),
                request_scoped_errors=[ErrorRuleEntry(**it)] if (it := RULES[settings_.get("rule", 0)]) else [],
            )
            for name, settings_ in self.keys.items()
        ]  # fmt: skip
        return Config(
            openai_compatibility=providers,
            disable_cooling=self.cooling_disabled,
            transient_error_cooldown_seconds=self.transient,
        )

    def plan(self, model: str) -> Plan:
        return self.state.plan(model, method=EXECUTE, source="openai", wanted="openai")

    def ids(self) -> list[str]:
        return [credential.id for credential in self.state.pool.credentials]

    def drawn(self, data: st.DataObject) -> Credential:
        """Mostly the same few: their histories have to become long."""
        ids = self.ids()
        return self.state.pool.by_id[data.draw(st.sampled_from(ids[:1] * 4 + ids))]

    def models_of(self, alias: str) -> tuple[str, ...]:
        return UPSTREAMS[alias]

    @rule(
        model=st.sampled_from(MODELS),
        strategy=st.sampled_from(sorted(set(STRATEGIES.values()))),
        retries=st.integers(0, 3),
    )
    def pick(self, model: str, strategy: Any, retries: int) -> None:
        """A request, and some tries more: nobody blocked is picked, nobody twice, and nobody who is free is missed."""
        plan, pool, now_s = self.plan(model), self.state.pool, self.clock()
        search = Search(pool.policy)
        for _ in range(retries + 1):
            expected = self.candidates(plan, model, search.tried, weighted=strategy == "weighted-round-robin")
            found = pool.choose(plan.tiers, search, strategy=strategy, cursor=plan.cursor)
            if isinstance(found, Exhausted):
                assert expected == set()
                self.check_refusal(found, plan, model, search.tried, now_s, weighted=strategy == "weighted-round-robin")
                return
            picked = plan.lane(*found).credential.id
            assert picked in expected
            search.note_tried(picked)

    def candidates(self, plan: Plan, model: str, tried: set[str], *, weighted: bool) -> set[str]:
        """The free and untried ones of the best priority that has one."""
        for priority in sorted({lane.credential.priority for lane in plan.lanes()}, reverse=True):
            found = {
                lane.credential.id
                for lane in plan.lanes()
                if lane.credential.priority == priority
                and lane.credential.id not in tried
                and (lane.credential.weight > 0 or not weighted)
                and self.table.until_s(lane.credential.id, self.models_of(model), self.clock()) is None
            }
            if found:
                return found
        return set()

    def check_refusal(
        self, found: Exhausted, plan: Plan, model: str, tried: set[str], now_s: float, *, weighted: bool
    ) -> None:
        blocks = [
            block
            for lane in plan.lanes()
            if lane.credential.id not in tried
            and (block := self.table.until_s(lane.credential.id, self.models_of(model), now_s)) is not None
        ]
        if not blocks:
            assert found.reason == "not_found"
            return
        assert abs(found.retry_after_s - (min(until_s for until_s, _ in blocks) - now_s)) < 1e-6
        assert (found.reason == "cooling") is all(quota for _, quota in blocks)

    @rule(data=st.data(), model=st.sampled_from(MODELS), kind=st.sampled_from(KINDS))
    @precondition(lambda self: bool(self.ids()))
    def fail(self, data: st.DataObject, model: str, kind: str) -> None:
        upstream = data.draw(st.sampled_from(self.models_of(model)))
        self.failed(Open(self.state.pool, self.drawn(data), upstream, self.clock()), kind)

    def failed(self, attempt: Open, kind: str) -> None:
        """Judged by the rules that the request began with, marked on what is in force now."""
        credential, policy = attempt.credential, attempt.pool.policy
        verdict = classify(ERRORS[kind], transient_s=policy.transient_s, rules=credential.error_rules)
        for rule_ in credential.error_rules:
            if rule_.status == ERRORS[kind].http_status:
                assert verdict.rotate is rule_.action.startswith("continue")
                assert verdict.rests is verdict.forced is rule_.action.endswith("cooldown")
        rest_s = attempt.pool.failed(credential, attempt.upstream, verdict, cause=NO_CAUSE)
        now = self.state.pool.by_id.get(credential.id)
        if now is None or now.disabled or now.created_at_s != credential.created_at_s:
            assert rest_s == 0  # gone, or another one that came in its place
            return
        self.table.counts.setdefault(credential.id, [0, 0])[1] += 1
        assert rest_s >= 0
        if verdict.forced or self.state.policy.cools(now):
            self.table.fail(credential.id, attempt.upstream, verdict, self.clock())
        else:
            assert rest_s == 0

    @rule(data=st.data(), model=st.sampled_from(MODELS))
    @precondition(lambda self: bool(self.ids()) and len(self.open) < 8)
    def begin(self, data: st.DataObject, model: str) -> None:
        upstream = data.draw(st.sampled_from(self.models_of(model)))
        self.open.append(Open(self.state.pool, self.drawn(data), upstream, self.clock()))

    @rule(number=st.integers(0, 7), kind=st.sampled_from(KINDS))
    @precondition(lambda self: bool(self.open))
    def end_failed(self, number: int, kind: str) -> None:
        self.failed(self.open.pop(number % len(self.open)), kind)

    @rule(number=st.integers(0, 7), left=st.booleans(), streamed=st.booleans())
    @precondition(lambda self: bool(self.open))
    def end_succeeded(self, number: int, left: bool, streamed: bool) -> None:
        """`streamed`: it was accepted when it began."""
        attempt, now_s = self.open.pop(number % len(self.open)), self.clock()
        seen_s = attempt.began_s if streamed else now_s
        headers = {"x-ratelimit-remaining-requests": ["5" if left else "0"]}
        attempt.pool.disprove(
            attempt.credential.id,
            attempt.upstream,
            age_s=now_s - attempt.began_s,
            seen_ago_s=now_s - seen_s,
            headers=headers,
        )
        self.table.succeed(
            attempt.credential.id, attempt.upstream, began_s=attempt.began_s, seen_s=seen_s, left=left, now_s=now_s
        )

    @rule(data=st.data(), model=st.sampled_from([WHOLE, "m-1", "d"]), kind=st.sampled_from(OFTEN), ends=st.booleans())
    @precondition(lambda self: bool(self.ids()))
    def another_node_says(self, data: st.DataObject, model: str, kind: str, ends: bool) -> None:
        """That a block has ended, or that there is one, in place of what is known here."""
        credential, book, now_s = self.drawn(data), self.state.pool.book, self.clock()
        if credential.disabled or not self.state.policy.cools(credential):
            return
        if ends:
            book.forget(credential.id, model)
            self.table.rows.pop((credential.id, model), None)
            return
        verdict, until_s = classify(ERRORS[kind]), now_s + 45
        book.adopt(
            credential.id, model, verdict, since_s=now_s - 1, until_s=until_s, level=2, cause=NO_CAUSE
        )  # fmt: skip
        self.table.rows[credential.id, model] = Row(
            now_s - 1, until_s, verdict.reason, verdict.quota, verdict.exact, verdict.forced, 2
        )

    @rule(data=st.data(), model=st.sampled_from(MODELS))
    @precondition(lambda self: bool(self.ids()))
    def plugin_knows_better(self, data: st.DataObject, model: str) -> None:
        provider = self.drawn(data).provider
        plan = self.plan(model)
        self.state.pool.lift(plan.tiers, provider, PASSING)
        kept_away = {
            lane.credential.id
            for lane in plan.lanes()
            if lane.provider == provider
            and self.table.until_s(lane.credential.id, self.models_of(model), self.clock()) is not None
        }
        for key, row in list(self.table.rows.items()):
            asked = key[0] in kept_away and key[1] in (WHOLE, *self.models_of(model))
            if asked and row.reason in PASSING and row.until_s > self.clock():
                del self.table.rows[key]

    @precondition(lambda self: bool(self.ids()))
    @rule(
        data=st.data(),
        ago=st.sampled_from([0.0, 0.4, 3.0, 60.0]),
        took=st.sampled_from([0.0, 0.4, 3.0]),
        left=st.booleans(),
    )
    def succeed(self, data: st.DataObject, ago: float, took: float, left: bool) -> None:
        """Mostly somebody who is blocked: a success of anybody else changes nothing."""
        blocked = sorted((it, model) for it, model in self.table.rows if it in self.ids())
        credential_id, model = data.draw(st.sampled_from([*blocked, (self.ids()[0], "m-1")]))
        credential, upstream = self.state.pool.by_id[credential_id], model or "m-1"
        began_s, seen_s = self.clock() - ago, self.clock() - ago + min(ago, took)
        headers = {"x-ratelimit-remaining-requests": ["5" if left else "0"]}
        self.state.pool.health.tallies.succeeded(credential_id)
        self.state.pool.disprove(credential_id, upstream, age_s=ago, seen_ago_s=self.clock() - seen_s, headers=headers)
        self.table.counts.setdefault(credential.id, [0, 0])[0] += 1
        self.table.succeed(credential.id, upstream, began_s=began_s, seen_s=seen_s, left=left, now_s=self.clock())

    @rule(seconds=st.sampled_from([0.5, 1.0, 1.0, 2.0, 2.0, 7.0, 7.0, 30.0, 60.0, 1800.0, FORGET_AFTER_S, 43200.0]))
    def turn(self, seconds: float) -> None:
        self.clock.now_s += seconds
        self.table.forget(self.clock())

    @precondition(lambda self: bool(self.ids()))
    @rule(data=st.data())
    def reset(self, data: st.DataObject) -> None:
        credential = self.drawn(data)
        assert self.state.reset_quota(credential.auth_index) is not None
        self.table.drop(credential.id)

    @precondition(lambda self: bool(self.ids()))
    @rule(data=st.data())
    def renew_token(self, data: st.DataObject) -> None:
        credential = data.draw(st.sampled_from(self.ids()))
        self.state.credentials_changed(
            CredentialChange(touched=frozenset({credential}), refreshed=frozenset({credential}))
        )
        for key in [
            key for key, row in self.table.rows.items() if key[0] == credential and row.reason == "unauthorized"
        ]:
            del self.table.rows[key]

    @rule(
        name=st.sampled_from([f"k{number}" for number in range(7)]),
        change=st.sampled_from(
            [
                "remove",
                "priority",
                "weight",
                "cooling",
                "cooling everywhere",
                "disabled",
                "rule",
                "transient",
                "nothing",
            ]
        ),
        value=st.integers(0, 3),
    )
    def reload(self, name: str, change: str, value: int) -> None:
        present = self.keys.setdefault(name, {"priority": 0}) if change != "remove" else {}
        match change:
            case "remove" if len(self.keys) > 1:
                self.keys.pop(name, None)
            case "priority":
                present["priority"] = value
            case "weight":
                present["weight"] = value
            case "cooling":
                present["disable_cooling"] = [None, True, False, None][value]
            case "cooling everywhere":
                self.cooling_disabled = not self.cooling_disabled
            case "disabled":
                present["disabled"] = not present.get("disabled", False)
            case "rule":
                present["rule"] = value
            case "transient":
                self.transient = [0, -1, 5, 0][value]
        before = set(self.ids())
        self.state = build_state(self.config(), self.plugins(), previous=self.state)
        for gone in before - set(self.ids()):
            self.table.drop(gone)
            self.table.counts.pop(gone, None)
        for credential in self.state.pool.credentials:
            if credential.disabled:
                self.table.drop(credential.id)
            elif not self.state.policy.cools(credential):
                self.table.drop(credential.id, but_forced=True)

    @invariant()
    @precondition(lambda self: bool(self.keys))
    def what_is_free_is_what_the_table_says(self) -> None:
        self.state.pool.book.tick()
        for model in MODELS:
            plan = self.plan(model)
            for tier in plan.tiers:
                tier.ready.sync()
                free = {tier.ready.members.ids[position] for position in tier.ready.free()}
                said = {
                    it
                    for it in tier.ready.members.ids
                    if self.table.until_s(it, self.models_of(model), self.clock()) is None
                }
                assert free == said
                assert tier.ready.count == len(free)
                positions = [tier.ready.at(number) for number in range(len(free))]
                assert positions == sorted(tier.ready.members.positions[it] for it in free)
                assert [tier.ready.rank(position) for position in positions] == list(range(len(free)))

    @invariant()
    @precondition(lambda self: bool(self.keys))
    def nothing_is_counted_twice_or_kept_for_nobody(self) -> None:
        pool = self.state.pool
        pool.book.tick()
        for credential_id in self.ids():
            assert list(pool.health.tallies.of(credential_id)) == self.table.counts.get(credential_id, [0, 0])
        kept = {(it, model) for it, states in pool.book.all_states() for model in states}
        assert kept == set(self.table.rows)
        assert len(pool.book._queue) <= 64 + 4 * len(kept) + 1


TestPoolLife = PoolLife.TestCase
TestPoolLife.settings = settings(
    settings.default, max_examples=LIVES or 100, stateful_step_count=100 if LIVES else 50, deadline=None
)
