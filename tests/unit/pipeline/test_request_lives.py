"""Random lives of a whole gateway: requests that wait in the middle of everything while the world around them changes.

Upstreams, schedulers and clocks wait for the machine. Meanwhile keys and files come, go, are renamed, switched off and
on, get other priorities, weights, names and tables of models. `make lives` runs more and longer ones.
"""

import asyncio
import os
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from host.config.model import Routing
from host.credentials.manager import CredentialManager
from host.pipeline.request import Demands
from pluginabi.errors import ErrorBody, PluginError
from tests.support.pool_life import Flight, Stage

LIVES = int(os.environ.get("LIVES", "0"))
MODELS = ("m", "pool", "n", "team/m")
TABLES: tuple[dict[str, tuple[str, ...]], ...] = (
    {"m": ("m",), "pool": ("m", "d")},
    {"m": ("m",), "n": ("m",)},
    {"pool": ("d", "e", "m(high)"), "n": ("e",)},
    {"m": ("x",)},
)
ERRORS: dict[str, dict[str, Any]] = {
    "limit": {"http_status": 429},
    "limit with a time": {"http_status": 429, "retry_after_ms": 7000},
    "limit of the account": {"http_status": 429, "retry_after_ms": 20_000, "scope": "credential"},
    "refused": {"http_status": 401},
    "busy": {"http_status": 503},
    "unknown model": {"http_status": 404},
    "wrong request": {"http_status": 422},
    "cut": {"http_status": 502, "scope": "connection"},
    "provider": {"http_status": 503, "scope": "provider"},
}
KEYS, FILES = ("k0", "k1", "k2"), ("f0.json", "f1.json", "several.json")
SCHEDULERS = ("none", "none", "none", "first", "unknown", "delegate", "by weight", "veto", "slow", "no opinion")
SETTINGS = st.sampled_from(
    [
        ("max_retry_credentials", 0),
        ("max_retry_credentials", 1),
        ("max_retry_credentials", 2),
        ("request_retry", 0),
        ("request_retry", 2),
        ("max_retry_interval", 0),
        ("max_retry_interval", 30),
        ("disable_cooling", True),
        ("disable_cooling", False),
        ("transient_error_cooldown_seconds", 5),
        ("transient_error_cooldown_seconds", -1),
        ("force_model_prefix", True),
        ("force_model_prefix", False),
        ("routing", Routing(strategy="fill-first")),
        ("routing", Routing(strategy="weighted-round-robin")),
        ("routing", Routing(session_affinity=True)),
        ("routing", Routing(session_affinity=True, session_affinity_ttl=20, strategy="wrr")),
    ]
)
KEY_CHANGES = st.one_of(
    st.tuples(st.just("priority"), st.integers(-1, 2)),
    st.tuples(st.just("weight"), st.sampled_from([0, 1, 3, 1_000_000])),
    st.tuples(st.just("models"), st.sampled_from(TABLES)),
    st.tuples(st.just("prefix"), st.sampled_from(["", "team"])),
    st.tuples(st.just("name"), st.sampled_from(["a", "b", "c"])),
    st.tuples(st.just("count"), st.integers(1, 3)),
    st.tuples(st.just("disabled"), st.booleans()),
    st.tuples(st.just("retry"), st.sampled_from([None, 0, 1])),
)
DOCUMENTS = st.fixed_dictionaries(
    {
        "api_key": st.sampled_from(["s", "t"]),
        "priority": st.integers(0, 2),
        "models": st.sampled_from([["m"], ["m", "n"], [{"name": "d", "alias": "pool"}]]),
        "disabled": st.sampled_from([False, False, True]),
        "prefix": st.sampled_from(["", "team"]),
        "weight": st.sampled_from([0, 1, 2]),
    }
)
ACCOUNTS = st.lists(st.sampled_from(["x", "y", "z"]), min_size=2, max_size=3, unique=True)


class RequestLife(RuleBasedStateMachine):
    """One process with a few keys and files."""

    def __init__(self) -> None:
        super().__init__()
        self.runner = asyncio.Runner()
        self.stage = Stage()

    def act(self, action: Any = None) -> None:
        async def acting() -> None:
            async with asyncio.timeout(20):
                if action is not None:
                    action()
                await self.stage.settle()

        self.runner.run(acting())

    @initialize(count=st.integers(1, 3), affinity=st.booleans())
    def start(self, count: int, affinity: bool) -> None:
        self.stage.keys = {name: {"models": TABLES[0], "count": 1} for name in KEYS[:count]}
        self.stage.settings = {"routing": Routing(session_affinity=affinity)}
        self.act(self.stage.open)

    @rule(
        model=st.sampled_from(["m", "m", "m(high)", *MODELS]),
        session=st.sampled_from(["", "s", "t"]),
        stream=st.booleans(),
        data=st.data(),
    )
    @precondition(lambda self: sum(not it.task.done() for it in self.stage.flights.values()) < 6)
    def begin(self, model: str, session: str, stream: bool, data: st.DataObject) -> None:
        pinned = ""
        if data.draw(st.integers(0, 7)) == 0 and self.stage.pool.credentials:
            pinned = data.draw(st.sampled_from(sorted(self.stage.pool.by_id)))

        def beginning() -> None:
            flight = self.stage.begin(model, session, stream=stream, demands=Demands(pinned_auth_id=pinned))
            flight.scheduled = flight.scheduled or bool(pinned)

        self.act(beginning)

    def holding(self) -> list[Flight]:
        return [it for it in self.stage.flights.values() if it.now is not None and not it.task.done()]  # type: ignore[union-attr]

    @rule(number=st.integers(0, 5), kind=st.sampled_from([*sorted(ERRORS), "ok", "ok", "ok", "ok"]))
    @precondition(lambda self: bool(self.holding()))
    def upstream_answers(self, number: int, kind: str) -> None:
        held = self.holding()
        error = None if kind == "ok" else PluginError(ErrorBody(message=kind, **ERRORS[kind]))
        self.act(lambda: self.stage.answer(held[number % len(held)], error))

    @rule(number=st.integers(0, 5))
    @precondition(lambda self: any(not it.task.done() for it in self.stage.flights.values()))
    def client_leaves(self, number: int) -> None:
        on_their_way = [it for it in self.stage.flights.values() if it.task is not None and not it.task.done()]
        flight = on_their_way[number % len(on_their_way)]
        assert flight.task is not None
        self.act(flight.task.cancel)

    @rule(answer=st.sampled_from([None, PluginError("no", http_status=500)]))
    @precondition(lambda self: bool(self.stage.thinking))
    def scheduler_answers(self, answer: Any) -> None:
        _, thought = self.stage.thinking.popitem()
        if not thought.done():
            self.act(lambda: thought.set_result(answer))

    @rule(seconds=st.sampled_from([0.5, 1.0, 2.0, 7.0, 30.0, 60.0, 1800.0, 43200.0]))
    def turn(self, seconds: float) -> None:
        self.act(lambda: self.stage.turn(seconds))

    @rule(seconds=st.sampled_from([-1e6, -60.0, 60.0, 1e6]))
    def set_clock(self, seconds: float) -> None:
        """The wall clock means nothing to the pool."""
        self.stage.now_s += seconds

    @rule(setting=SETTINGS)
    def change_setting(self, setting: tuple[str, Any]) -> None:
        self.stage.settings[setting[0]] = setting[1]
        self.act(self.stage.reload)

    @rule(name=st.sampled_from(KEYS), change=KEY_CHANGES)
    def change_key(self, name: str, change: tuple[str, Any]) -> None:
        self.stage.keys.setdefault(name, {"models": TABLES[0], "count": 1})[change[0]] = change[1]
        self.act(self.stage.reload)

    @rule(name=st.sampled_from(KEYS), comes_back=st.booleans())
    def remove_key(self, name: str, comes_back: bool) -> None:
        """Perhaps at once: what was on its way must not be taken for the new one."""
        known = self.stage.keys.pop(name, None)

        def removing() -> None:
            self.stage.reload()
            if comes_back and known is not None:
                self.stage.keys[name] = known
                self.stage.reload()

        self.act(removing)

    @rule(name=st.sampled_from(FILES), document=DOCUMENTS, accounts=ACCOUNTS)
    def write_file(self, name: str, document: dict[str, Any], accounts: list[str]) -> None:
        whole = {"type": "openai-compatible-files", "base_url": "https://b.test", **document}
        if name == "several.json":
            whole["accounts"] = accounts
        self.stage.files.documents[name] = whole
        self.act(lambda: self.stage.put_file(name))

    @rule(name=st.sampled_from(FILES), comes_back=st.booleans())
    def delete_file(self, name: str, comes_back: bool) -> None:
        known = self.stage.files.documents.pop(name, None)

        def deleting() -> None:
            self.stage.put_file(name)
            if comes_back and known is not None:
                self.stage.files.documents[name] = known
                self.stage.put_file(name)

        self.act(deleting)

    @rule(kind=st.sampled_from(SCHEDULERS))
    def change_scheduler(self, kind: str) -> None:
        self.stage.scheduler = kind
        self.act(self.stage.rebuild)

    @rule(data=st.data())
    @precondition(lambda self: bool(self.stage.pool.credentials))
    def reset_quota(self, data: st.DataObject) -> None:
        credential = data.draw(st.sampled_from(self.stage.pool.credentials))
        self.act(lambda: self.stage.gateway.state.reset_quota(credential.auth_index))

    @rule()
    def restart(self) -> None:
        """A process that starts with the same configuration and files knows everybody by the same names."""
        manager = CredentialManager()
        manager.apply_config(self.stage.config)
        for name in sorted(self.stage.files.documents):
            manager.set_source(f"/auths/{name}", self.stage.files.records(manager, self.stage.config, name))
        known = {(it.id, it.auth_index, it.provider) for it in self.stage.manager.credentials}
        assert {(it.id, it.auth_index, it.provider) for it in manager.credentials} == known

    @invariant()
    def nothing_went_wrong(self) -> None:
        assert self.stage.wrong == []

    @invariant()
    @precondition(lambda self: hasattr(self.stage, "gateway"))
    def who_serves_a_model_is_counted_right(self) -> None:
        registry = self.stage.gateway.state.registry
        for model in MODELS:
            expected = {it.id for it in self.stage.serving(model)}
            plan = self.stage.gateway.state.plan(model, method="executor.execute", source="openai", wanted="openai")
            assert {lane.credential.id for lane in plan.lanes()} == expected
            assert registry.count(model) == plan.total == len(expected)
            assert [tier.priority for tier in plan.tiers] == sorted({it.priority for it in self.stage.serving(model)})[
                ::-1
            ]
        listed = {info.id for info in registry.list()}
        assert listed & set(MODELS) == {it for it in MODELS if next(self.stage.serving(it), None)}

    @invariant()
    @precondition(lambda self: hasattr(self.stage, "gateway"))
    def every_result_is_counted_once_and_of_whom_it_is(self) -> None:
        for it in self.stage.pool.credentials:
            counted = self.stage.pool.health.tallies.of(it.id)
            assert list(counted) == self.stage.counts.get((it.id, it.created_at_s), [0, 0])

    @invariant()
    @precondition(lambda self: hasattr(self.stage, "gateway"))
    def nothing_is_kept_of_who_is_gone(self) -> None:
        pool, health = self.stage.pool, self.stage.pool.health
        assert set(pool.by_id) == {it.id for it in self.stage.manager.credentials}
        enabled = {it.id for it in pool.credentials if not it.disabled}
        assert {credential_id for credential_id, _ in health.book.all_states()} <= enabled
        assert health.tallies._by_id.keys() <= set(pool.by_id)
        assert health.waiting == sum(it.sleeping for it in self.stage.flights.values())

    def teardown(self) -> None:
        self.runner.run(self.stage.tasks.stop())
        self.runner.close()
        assert self.stage.wrong == []


TestRequestLife = RequestLife.TestCase
TestRequestLife.settings = settings(
    settings.default, max_examples=LIVES or 40, stateful_step_count=80 if LIVES else 40, deadline=None
)
