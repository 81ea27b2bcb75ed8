"""Credentials that an operator takes away while requests run: nothing new is begun with them."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest

from host.config.model import Config, Routing
from host.credentials.manager import CredentialManager
from host.credentials.records import Credential, CredentialModel
from host.credentials.secret import Secret
from host.errors import RequestError
from host.pipeline.state import build_state
from pluginabi.errors import PluginError
from pluginabi.payloads.executor import ExecutorResponse
from pluginabi.payloads.intercept import RequestInterceptResponse
from pluginabi.payloads.routing import SchedulerPickResponse
from tests.support.pipeline import (
    FakeItems,
    FakePlugin,
    client_request,
    compat_config,
    executor,
    raw_bytes,
    read_all,
    snapshot,
    world,
)
from tests.support.streams import STREAMS

BUSY = PluginError("busy", http_status=503)


class Site:
    """Credential files `a`, `b` and `c`, picked in this order, and an upstream that does as told."""

    def __init__(self, execute: Callable[["Site"], Any], *plugins: FakePlugin, **config: Any) -> None:
        self.config = Config(**config)
        self.manager = CredentialManager()
        self.upstream = executor(lambda _: execute(self), stream=lambda _: execute(self))
        self.plugins = snapshot(self.upstream, *plugins)
        self.world = world(self.upstream, *plugins)
        self.of = {name: of_file(name) for name in "abc"}
        self.change()

    def change(self, **records: Sequence[Credential]) -> None:
        """Files of these names hold these records from now on."""
        for name, credential in self.of.items():
            self.manager.set_source(name, records.get(name, [credential]))
        gateway = self.world.gateway
        gateway.state = build_state(
            self.config, self.plugins, previous=gateway.state, manager=self.manager, clock=self.world.clock
        )

    @property
    def attempts(self) -> list[str]:
        """The credentials of the attempts so far."""
        return [it.credential.handle for it in self.upstream.seen("executor.execute")]

    @property
    def withdrawn(self) -> list[tuple[str, str]]:
        return [(it["credential"], it["why"]) for it in self.world.decisions("withdrawn")]


def of_file(name: str, **fields: Any) -> Credential:
    known = Credential(
        id=name, provider="openai-compatible-acme", label=name, handle=name, source_kind="file", path=name,
        secret=Secret(f"token-{name}"), models=(CredentialModel(upstream="m", client="m"),), created_at_s=1.0,
        base_url="https://acme.test/v1",
    )  # fmt: skip
    return replace(known, **fields)


@pytest.mark.parametrize(
    ("records", "why"),
    [
        ([], "removed"),
        ([of_file("b", disabled=True)], "disabled"),
        ([of_file("b", excluded_models=("*",))], "disabled"),
        ([of_file("b", base_url="https://other.test/v1")], "replaced"),
    ],
)
async def test_the_next_attempt_goes_past_a_credential_that_was_taken_away(records, why):
    def execute(site: Site) -> Any:
        if site.attempts == ["a"]:
            site.change(b=records)
            return BUSY
        return ExecutorResponse()

    site = Site(execute)
    await site.world.gateway.execute(client_request())
    assert site.attempts == ["a", "c"]
    assert site.withdrawn == [("b", why)]


async def test_a_file_that_was_deleted_and_made_anew_is_another_credential():
    def execute(site: Site) -> Any:
        if site.attempts == ["a"]:
            site.change(b=[])
            site.change(b=[replace(of_file("b"), created_at_s=2.0)])
            return BUSY
        return ExecutorResponse()

    site = Site(execute)
    await site.world.gateway.execute(client_request())
    assert (site.attempts, site.withdrawn) == (["a", "c"], [("b", "replaced")])


async def test_an_edit_that_changes_no_more_than_a_name_takes_nothing_away():
    def execute(site: Site) -> Any:
        if site.attempts == ["a"]:
            site.change(b=[replace(of_file("b"), label="new", secret=Secret("renewed"))])
            return BUSY
        return ExecutorResponse()

    site = Site(execute)
    await site.world.gateway.execute(client_request())
    assert (site.attempts, site.withdrawn) == (["a", "b"], [])


@pytest.mark.parametrize("retries", [0, 2])
async def test_when_all_are_taken_away_the_client_hears_what_the_upstream_said(retries):
    def execute(site: Site) -> Any:
        site.change(a=[], b=[], c=[])
        return BUSY

    site = Site(execute, request_retry=retries, max_retry_interval=90)
    with pytest.raises(PluginError) as raised:
        await site.world.gateway.execute(client_request())
    assert (site.attempts, raised.value.http_status) == (["a"], 503)
    assert site.world.slept_s == [], "nobody is left to wait for"


async def test_a_round_after_a_wait_uses_nobody_who_was_taken_away_during_the_wait():
    def execute(site: Site) -> Any:
        return BUSY if len(site.attempts) <= 3 else ExecutorResponse()

    site = Site(execute, request_retry=1, max_retry_interval=90)
    sleep = site.world.gateway.state.pool.health.sleep

    async def take_away(wait_s: float) -> None:
        await sleep(wait_s)
        site.change(a=[], b=[])

    site.world.gateway.state.pool.health.sleep = take_away
    await site.world.gateway.execute(client_request())
    assert site.attempts == ["a", "b", "c", "c"]


@pytest.mark.parametrize("changed", ["removed", "edited"])
async def test_a_key_that_left_the_configuration_gets_no_further_attempt(changed):
    """An edited key has another id: the old one is as dead as a removed one."""

    def execute(request: Any) -> Any:
        used.append(secrets[request.credential.handle])
        if len(used) > 1:
            return ExecutorResponse()
        kept = [{second: "new"}.get(it, it) for it in order if it != second or changed == "edited"]
        w.gateway.state = build_state(compat_config(keys=kept), snapshot(upstream), previous=w.gateway.state)
        return BUSY

    upstream = executor(execute)
    w = world(upstream, config=compat_config(keys=("k1", "k2", "k3")))
    by_id = w.gateway.state.pool.by_id
    used: list[str] = []
    secrets = {it.handle: it.secret.reveal() for it in by_id.values() if it.secret}
    # Picked in the order of their ids, which come of the keys.
    order = [secrets[by_id[it].handle] for it in sorted(by_id)]
    second = order[1]
    await w.gateway.execute(client_request())
    assert used[0] == order[0] and used[1] not in (*order[:2], "new")
    [decision] = w.decisions("withdrawn")
    assert (secrets[by_id[decision["credential"]].handle], decision["why"]) == (second, "removed")


async def test_a_credential_that_is_taken_away_while_its_request_is_prepared_is_not_used():
    taken = []

    def prepare(request: Any) -> RequestInterceptResponse:
        if not taken:
            taken.append(site.change(a=[]))
        return RequestInterceptResponse()

    slow = FakePlugin(id="slow", hooks={"request.intercept_after": prepare})
    site = Site(lambda _: ExecutorResponse(), slow)
    await site.world.gateway.execute(client_request())
    assert (site.attempts, site.withdrawn) == (["b"], [("a", "removed")])


async def test_a_scheduler_that_insists_on_a_credential_that_was_taken_away_is_not_obeyed():
    def execute(site: Site) -> Any:
        if site.attempts == ["a"]:
            site.change(b=[])
            return BUSY
        return ExecutorResponse()

    answers = iter(["a", "b", "b"])
    scheduler = FakePlugin(
        id="chooser", hooks={"scheduler.pick": lambda _: SchedulerPickResponse(auth_id=next(answers, ""))}
    )
    site = Site(execute, scheduler)
    await site.world.gateway.execute(client_request())
    assert site.attempts == ["a", "c"]


async def test_thousands_of_keys_that_are_taken_away_hold_nobody_up():
    """The search learns of them together, not one attempt to pick after the other."""

    def execute(site: Site) -> Any:
        if site.attempts == ["a"]:
            site.change(**{name: () for name in site.of if name != "last"})
            return BUSY
        return ExecutorResponse()

    site = Site(execute, routing=Routing(strategy="fill-first"))
    site.of |= {name: of_file(name) for name in (*(f"k{n:04}" for n in range(2_000)), "last")}
    site.change()
    await site.world.gateway.execute(client_request())
    assert site.attempts == ["a", "last"]
    assert len(site.withdrawn) == 1


async def test_a_stream_that_runs_goes_on_though_its_credential_is_taken_away():
    whole = STREAMS["openai"]
    site = Site(lambda _: FakeItems([whole[: len(whole) // 2], whole[len(whole) // 2 :]]))
    stream: Any = await site.world.gateway.execute_stream(client_request(stream=True))
    site.change(a=[], b=[], c=[])
    assert raw_bytes(await read_all(stream)) == whole


async def test_a_request_that_finds_nobody_left_says_that_there_is_none():
    def prepare(request: Any) -> RequestInterceptResponse:
        site.change(a=[], b=[], c=[])
        return RequestInterceptResponse()

    slow = FakePlugin(id="slow", hooks={"request.intercept_before": prepare})
    site = Site(lambda _: ExecutorResponse(), slow)
    with pytest.raises(RequestError) as raised:
        await site.world.gateway.execute(client_request())
    assert (raised.value.body.http_status, raised.value.body.code, site.attempts) == (503, "auth_not_found", [])
