"""model.for_auth."""

import asyncio

import msgspec
import pytest
import structlog

from host.config.model import Config, ModelAliasEntry
from host.credentials.manager import CredentialManager
from host.credentials.records import Credential
from host.credentials.secret import SecretDocument
from host.pipeline.auth_models import AuthModels, bindings_for
from host.pipeline.state import build_state
from host.runtime.invoke import Invoker
from host.tasks import TaskGroup
from pluginabi.errors import PluginError
from pluginabi.payloads.common import CredentialRecord, HostSummary, ModelInfo
from pluginabi.payloads.lifecycle import ExecutorRegistration
from pluginabi.payloads.models import ModelForAuthResponse
from tests.support.pipeline import FakePlugin, answering, snapshot

FOR_AUTH = "model.for_auth"


def account(name: str = "a.json", **fields) -> Credential:
    settings = {
        "id": name,
        "provider": "gem",
        "label": name,
        "source_kind": "file",
        "auth_kind": "oauth",
        "path": name,
    } | fields
    return Credential(handle=f"handle-of-{name}", **settings)


def models(*names: str, **fields) -> ModelForAuthResponse:
    return ModelForAuthResponse(models=[ModelInfo(id=name) for name in names], **fields)


def provider(answer, name: str = "p", **fields) -> FakePlugin:
    hooks = {"executor.execute": answering(), FOR_AUTH: answer if callable(answer) else lambda _: answer}
    return FakePlugin(**{"id": name, "hooks": hooks, "providers": ["gem"], **fields})


class Site:
    """States over accounts and plugins, and what follows them."""

    def __init__(self, *plugins: FakePlugin, accounts: tuple[Credential, ...] = (account(),), **config) -> None:
        self.tasks = TaskGroup("test")
        self.manager = CredentialManager()
        self.manager.set_sources({it.id: [it] for it in accounts})
        self.config = Config(**config)
        self.amended: list[tuple[str, CredentialRecord]] = []
        self.rebuilt = 0
        self.amend_with = None
        self.state = build_state(self.config, snapshot(*plugins), manager=self.manager)
        self.models = AuthModels(
            self.state, invoker=Invoker(), tasks=self.tasks, host=HostSummary, amend=self.amend, rebuild=self.rebuild
        )

    async def amend(self, credential_id: str, change: CredentialRecord) -> None:
        self.amended.append((credential_id, change))
        if self.amend_with is not None:
            await self.amend_with(credential_id, change)

    def rebuild(self) -> None:
        self.rebuilt += 1
        self.state = build_state(self.config, self.state.plugins, previous=self.state, manager=self.manager)
        self.models.follow(self.state)

    async def settle(self) -> list[str]:
        """The models that clients are shown once everybody was asked."""
        self.models.follow(self.state)
        await self.tasks.join()
        return [info.id for info in self.state.listing()]


async def test_a_credential_serves_what_the_plugin_lists_for_it():
    site = Site(provider(models(" m ", "", "n")))
    assert await site.settle() == ["m", "n"]
    assert site.rebuilt == 1
    assert site.state.models_of("a.json") == ("m", "n")


async def test_aliases_prefixes_and_exclusions_hold_for_these_models_too():
    site = Site(
        provider(models("m", "n-preview")),
        accounts=(account(prefix="team", excluded_models=("*-preview",)),),
        oauth_model_alias={"Gem": [ModelAliasEntry(name="m", alias="x")]},
    )
    assert await site.settle() == ["team/x", "x"]
    plan = site.state.plan("team/x(high)", method="executor.execute", source="openai", wanted="openai")
    assert [(lane.upstreams, lane.keys) for lane in plan.lanes()] == [(("m",), ("m",))]


async def test_the_plugin_sees_no_secret_without_the_permission():
    secret = account(metadata=SecretDocument({"access_token": "t"}))
    for permissions in (frozenset(), frozenset({"credential_secrets"})):
        plugin = provider(models("m"), permissions=permissions)
        await Site(plugin, accounts=(secret,)).settle()
        [seen] = plugin.seen(FOR_AUTH)
        assert seen.credential.handle == "handle-of-a.json"
        assert (seen.credential.storage is not msgspec.UNSET) is bool(permissions)


async def test_an_answer_for_another_provider_leaves_it_to_the_next_plugin():
    first, second = provider(models("m", provider="else"), "a", priority=1), provider(models("n"), "b")
    assert await Site(first, second).settle() == ["n"]


async def test_an_error_keeps_what_was_known():
    answers: list = [models("m"), PluginError("busy", http_status=503)]
    plugin = provider(lambda _: answers.pop(0))
    site = Site(plugin)
    await site.settle()
    site.manager.update(account(attributes={"plan": "pro"}))
    site.state = build_state(site.config, site.state.plugins, previous=site.state, manager=site.manager)
    assert await site.settle() == ["m"]
    assert len(plugin.seen(FOR_AUTH)) == 2


async def test_a_renewed_token_is_no_reason_to_ask_again():
    plugin = provider(models("m"))
    site = Site(plugin)
    await site.settle()
    site.manager.update(account(metadata=SecretDocument({"access_token": "new"})), refreshed=True)
    await site.settle()
    assert len(plugin.seen(FOR_AUTH)) == 1


async def test_what_the_plugin_changes_of_the_credential_is_handed_on():
    change = CredentialRecord(label="mine")
    site = Site(provider(models("m", update=change)))
    await site.settle()
    assert site.amended == [("a.json", change)]


@pytest.mark.parametrize(
    ("fields", "asked"),
    [
        ({"providers": ["gem"]}, True),
        ({"providers": ["g*"]}, True),
        ({"providers": ["other"]}, False),
        ({"providers": ["gem"], "executor": ExecutorRegistration(scope="static")}, False),
        ({"providers": ["gem"], "executor": ExecutorRegistration(scope="oauth")}, True),
        ({"id": "gem", "providers": []}, True),
    ],
)
def test_who_knows_the_models_of_a_provider(fields, asked):
    plugins = snapshot(provider(None, **({"name": fields.pop("id")} if "id" in fields else {}), **fields))
    assert bool(list(bindings_for(plugins, "gem"))) is asked


async def test_a_credential_with_a_table_of_its_own_and_a_disabled_one_are_not_asked_about():
    from host.credentials.records import CredentialModel

    table = (CredentialModel(client="x", upstream="y"),)
    plugin = provider(models("m"))
    site = Site(plugin, accounts=(account("a.json", models=table), account("b.json", disabled=True)))
    assert await site.settle() == ["x"]
    assert plugin.seen(FOR_AUTH) == []


async def test_without_the_plugin_what_it_listed_is_gone():
    site = Site(provider(models("m")))
    await site.settle()
    executor = FakePlugin(
        id="p", hooks={"executor.execute": answering()}, providers=["gem"], models=[ModelInfo(id="s")]
    )
    site.state = build_state(site.config, snapshot(executor), previous=site.state, manager=site.manager)
    assert await site.settle() == ["s"]


async def test_everybody_is_asked_again_and_only_another_answer_makes_a_new_state():
    answers = {"a.json": models("m"), "b.json": models("m")}
    plugin = provider(lambda request: answers[request.credential.label])
    site = Site(plugin, accounts=(account("a.json"), account("b.json")))
    await site.settle()
    before = site.rebuilt
    site.models.refresh()
    await site.tasks.join()
    assert (len(plugin.seen(FOR_AUTH)), site.rebuilt) == (4, before)
    answers |= {"a.json": models("m", "new"), "b.json": PluginError("busy", http_status=503)}
    site.models.refresh()
    await site.tasks.join()
    assert [site.state.models_of(it) for it in ("a.json", "b.json")] == [("m", "new"), ("m",)]
    assert site.rebuilt == before + 1


async def test_a_refresh_in_the_middle_of_a_batch_asks_each_credential_once_more():
    asked, go = asyncio.Event(), asyncio.Event()

    async def slowly(_):
        asked.set()
        await go.wait()
        return models("m")

    plugin = provider(slowly)
    site = Site(plugin)
    site.models.follow(site.state)
    async with asyncio.timeout(5):
        await asked.wait()
        site.models.refresh()
        site.models.refresh()
        go.set()
        await site.tasks.join()
    assert len(plugin.seen(FOR_AUTH)) == 2
    assert [info.id for info in site.state.listing()] == ["m"]


async def test_a_plugin_that_changes_a_credential_with_every_answer_is_not_asked_for_ever():
    plugin = provider(models("m", update=CredentialRecord(attributes={"plan": "pro"})))
    site = Site(plugin)
    count = 0

    async def amend(credential_id: str, change: CredentialRecord) -> None:
        nonlocal count
        count += 1
        site.manager.update(account(attributes={"checked": str(count)}))
        site.rebuild()
        await asyncio.sleep(0)

    site.amend_with = amend
    async with asyncio.timeout(5):
        assert await site.settle() == ["m"]
        assert await site.settle() == ["m"]
    assert len(plugin.seen(FOR_AUTH)) == 1
    # What somebody else changes is a reason to ask.
    site.manager.update(account(attributes={"plan": "free"}))
    site.state = build_state(site.config, site.state.plugins, previous=site.state, manager=site.manager)
    await site.settle()
    assert len(plugin.seen(FOR_AUTH)) == 2


async def test_a_host_that_stops_while_somebody_is_asked_publishes_nothing_any_more():
    asked = asyncio.Event()

    async def answer(request):
        if request.credential.label == "a.json":
            return models("m")
        if request.credential.label == "b.json":
            raise PluginError("busy", http_status=503)
        asked.set()
        return await asyncio.Event().wait()

    site = Site(provider(answer), accounts=(account("a.json"), account("b.json"), account("c.json")))
    site.models.follow(site.state)
    with structlog.testing.capture_logs() as logs:
        async with asyncio.timeout(5):
            await asked.wait()
            await site.tasks.stop()
    assert site.rebuilt == 0
    assert [entry["event"] for entry in logs if entry["log_level"] == "error"] == []
