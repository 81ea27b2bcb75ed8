"""Every hook is called where it belongs: endpoint x (plain, stream) x outcome, generated from the route table.

First all cells with every binding on; then once per binding with that binding off, where at least one cell must go
red: a hook whose absence nobody notices is a hook that nobody calls. `make hooks` prints the table.
"""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

import aiohttp
import pytest

from host.app import Proxy
from host.config.load import parse_config
from host.pipeline.state import build_state
from host.runtime.handle import PluginSnapshot
from tests.matrix.recorder import RECORDER

MODEL: Final = "probe(high)"
OUTCOMES: Final = ("ok", "upstream error", "client gone", "plugin error")
CHAT: Final = {"model": MODEL, "messages": [{"role": "user", "content": "one two three"}]}
CONTENTS: Final = {"contents": [{"role": "user", "parts": [{"text": "one two three"}]}]}
RESPONSES: Final = {"model": MODEL, "input": "one two three"}
EMBED: Final = {"model": MODEL, "input": "one two three"}
GEMINI: Final = f"/v1beta/models/{MODEL}"

ENDPOINTS: Final[dict[str, tuple[str, dict[str, Any]]]] = {
    "POST /v1/chat/completions": ("/v1/chat/completions", CHAT),
    "POST /v1/completions": ("/v1/completions", {"model": MODEL, "prompt": "one two three"}),
    "POST /v1/responses": ("/v1/responses", RESPONSES),
    "POST /v1/responses/compact": ("/v1/responses/compact", RESPONSES),
    "POST /backend-api/codex/responses": ("/backend-api/codex/responses", RESPONSES),
    "POST /backend-api/codex/responses/compact": ("/backend-api/codex/responses/compact", RESPONSES),
    "POST /v1/embeddings": ("/v1/embeddings", EMBED),
    "POST /v1/messages": ("/v1/messages", {**CHAT, "max_tokens": 9}),
    "POST /v1/messages/count_tokens": ("/v1/messages/count_tokens", CHAT),
    "POST /v1beta/models/{model}:generateContent": (f"{GEMINI}:generateContent", CONTENTS),
    "POST /v1beta/models/{model}:streamGenerateContent": (f"{GEMINI}:streamGenerateContent?alt=sse", CONTENTS),
    "POST /v1beta/models/{model}:countTokens": (f"{GEMINI}:countTokens", CONTENTS),
    "POST /v1beta/models/{model}:embedContent": (f"{GEMINI}:embedContent", {"content": {"parts": [{"text": "one"}]}}),
    "POST /v1/models/{model}:generateContent": (f"/v1/models/{MODEL}:generateContent", CONTENTS),
    "POST /v1beta/models/{model}:batchEmbedContents": (
        f"{GEMINI}:batchEmbedContents",
        {"requests": [{"model": MODEL, "content": {"parts": [{"text": "one"}]}}]},
    ),
}
STREAMED_BY_BODY: Final = (
    "/v1/chat/completions",
    "/v1/completions",
    "/v1/responses",
    "/v1/messages",
    "/codex/responses",
)
COUNTING: Final = ("count_tokens", ":countTokens")
NO_EXECUTION: Final = {
    "GET /": "names the product",
    "GET /healthz": "no request of a model",
    "HEAD /healthz": "no request of a model",
    "GET /readyz": "no request of a model",
    "GET /metrics": "no request of a model",
    "GET /v1/models": "answered from the registry",
    "GET /v1/models/": "answered from the registry",
    "GET /v1beta/models": "answered from the registry",
    "GET /v1beta/models/": "answered from the registry",
    "GET /v1/responses": "refused: it would be a WebSocket",
    "GET /backend-api/codex/responses": "refused: it would be a WebSocket",
}
"""Routes outside of the matrix, with the reason."""

ALWAYS: Final = (
    "frontend_auth.authenticate",
    "model.route",
    "request.intercept_before",
    "scheduler.pick",
    "request.intercept_after",
    "request.normalize",
    "thinking.apply",
    "usage.handle",
    "request.complete",
)


@dataclass(frozen=True)
class Cell:
    """One request of the matrix."""

    endpoint: str
    stream: bool
    outcome: str
    toy: bool = False

    def __str__(self) -> str:
        world = " (translated)" if self.toy else ""
        return f"{self.endpoint}{world} / {'stream' if self.stream else 'plain'} / {self.outcome}"

    def expected(self) -> frozenset[str]:
        """The hooks this request must reach."""
        counting = self.endpoint.endswith(COUNTING)
        executor = "count_tokens" if counting else "execute_stream" if self.stream else "execute"
        hooks = {*ALWAYS, f"executor.{executor}"}
        if self.toy:
            hooks.add("request.translate")
        if self.answered():
            hooks |= {"response.normalize_before", "response.normalize_after"}
            hooks.add("response.intercept_stream_chunk" if self.stream else "response.intercept_after")
            if self.toy:
                hooks.add("response.translate")
        return frozenset(hooks)

    def answered(self) -> bool:
        """Whether something of an answer came: streams err after two items, except for the plugin's error."""
        return self.outcome == "ok" or (self.stream and self.outcome != "plugin error")


def cells() -> Iterator[Cell]:
    for endpoint in ENDPOINTS:
        for stream in (False, True):
            if impossible(endpoint, stream) is None:
                for outcome in OUTCOMES:
                    yield Cell(endpoint, stream, outcome)
    for stream in (False, True):
        for outcome in OUTCOMES:
            yield Cell("POST /v1/chat/completions", stream, outcome, toy=True)


def impossible(endpoint: str, stream: bool) -> str | None:
    """Why an endpoint has no such cells."""
    if endpoint.endswith(":streamGenerateContent"):
        return None if stream else "this action always streams"
    if stream and not endpoint.endswith(STREAMED_BY_BODY):
        return "this endpoint never streams"
    return None


def config_text(*, toy: bool) -> str:
    return (
        "port: 0\ndisable-cooling: true\n"
        "openai-compatibility:\n  - name: probe\n    base-url: http://127.0.0.1:9\n    responses: true\n"
        "    api-key-entries: [{api-key: k}]\n    models: [{name: probe}]\n"
        f"plugins:\n  enabled: true\n  configs:\n    probe: {{enabled: true, toy: {str(toy).lower()}}}\n"
        "  policy:\n    probe: {runtime: inprocess}\n"
    )


@asynccontextmanager
async def running(directory: Path, *, toy: bool) -> AsyncIterator[Proxy]:
    folder = directory / ("toy" if toy else "same") / "plugins" / "probe"
    folder.mkdir(parents=True)
    (folder / "plugin.toml").write_text(
        'id = "probe"\nversion = "1.0.0"\nruntime = "inprocess"\nentry = "probe:Probe"\n'
    )
    (folder / "probe.py").write_text(Path(__file__).with_name("probe_plugin.py").read_text())
    file = folder.parent.parent / "config.yaml"
    file.write_text(config_text(toy=toy))
    proxy = Proxy(parse_config(file.read_text(), file=str(file)), config_path=file, watch=False)
    try:
        async with asyncio.timeout(60):
            await proxy.start()
        yield proxy
    finally:
        await proxy.stop()


async def run_cell(proxy: Proxy, client: aiohttp.ClientSession, cell: Cell) -> frozenset[str]:
    """Send the request, leave when the outcome says so, and return the hooks that were reached."""
    RECORDER.clear()
    path, document = ENDPOINTS[cell.endpoint]
    body = {**document, "stream": True} if cell.stream and ":" not in path.partition("(")[0] else document
    async with asyncio.timeout(60):
        sent = client.post(proxy.url + path, json=body, headers={"x-mode": cell.outcome})
        if cell.outcome == "client gone":
            await leave_early(sent, cell)
        else:
            async with sent as response:
                await response.read()
                assert cell.outcome != "ok" or response.status == 200, await response.text()
        await until_settled(proxy)
    return frozenset(RECORDER.calls)


async def leave_early(sent: Any, cell: Cell) -> None:
    """Hang up once the executor works on the request; a stream after its first bytes."""
    if cell.stream:
        response = await sent
        await response.content.readany()
        response.close()
        return
    request = asyncio.ensure_future(_awaited(sent))
    executing = asyncio.ensure_future(RECORDER.executing.wait())
    await asyncio.wait([request, executing], return_when=asyncio.FIRST_COMPLETED)
    for task in (request, executing):
        task.cancel()
    await asyncio.wait([request, executing])


async def _awaited(sent: Any) -> None:
    (await sent).close()


async def until_settled(proxy: Proxy) -> None:
    """Until no request is in flight and what runs after a request has run."""
    endings = ("host:request.complete", "host:usage.handle", "web:")
    while True:
        running = [task for task in asyncio.all_tasks() if task.get_name().startswith(endings)]
        if running:
            await asyncio.wait(running)
        elif proxy.metrics.in_flight:
            await asyncio.sleep(0)
        else:
            return


def without(snapshot: PluginSnapshot, method: str) -> PluginSnapshot:
    """The same plugins, but nobody implements `method`."""
    kept = {name: bindings for name, bindings in snapshot.bindings.items() if name != method}
    return replace(snapshot, bindings=MappingProxyType(kept))


async def all_cells(proxies: dict[bool, Proxy], client: aiohttp.ClientSession) -> dict[Cell, frozenset[str]]:
    seen = {}
    for cell in cells():
        try:
            seen[cell] = await run_cell(proxies[cell.toy], client, cell)
        except TimeoutError:
            raise AssertionError(f"{cell} never ended; it reached {RECORDER.calls}") from None
    return seen


def test_the_matrix_covers_every_route_of_the_proxy():
    from host.web.server import Frontend

    routes = Frontend._make_routes(object.__new__(Frontend))
    found = {f"{method} {path}" for method, path in routes.exact}
    found |= {f"{method} {prefix}" for method, prefix, _ in routes.prefixes}
    covered = {name for name in ENDPOINTS if "{model}" not in name} | {"POST /v1beta/models/", "POST /v1/models/"}
    covered |= set(NO_EXECUTION)
    assert found == covered


@pytest.mark.timeout(180)
async def test_every_hook_is_reached_in_every_cell_and_its_absence_is_noticed(tmp_path, capsys):
    async with (
        running(tmp_path, toy=False) as same,
        running(tmp_path, toy=True) as toy,
        aiohttp.ClientSession() as client,
    ):
        proxies = {False: same, True: toy}
        seen = await all_cells(proxies, client)
        wrong = {str(cell): sorted(cell.expected() ^ hooks) for cell, hooks in seen.items() if cell.expected() != hooks}
        red: dict[str, int] = {}
        methods = sorted(set().union(*(cell.expected() for cell in seen)))
        for method in methods:
            red[method] = await red_cells_without(method, proxies, client)
    with capsys.disabled():
        print_table(seen, red)
        for cell, hooks in wrong.items():
            print(f"WRONG {cell}: {', '.join(hooks)}")
    assert wrong == {}
    assert {method: count for method, count in red.items() if count == 0} == {}


async def red_cells_without(method: str, proxies: dict[bool, Proxy], client: aiohttp.ClientSession) -> int:
    """How many cells differ from what is expected while nobody implements `method`."""
    before = {world: proxy.gateway.state for world, proxy in proxies.items()}
    for proxy in proxies.values():
        state = proxy.gateway.state
        proxy.gateway.state = build_state(state.config, without(state.plugins, method), previous=state)
    count = 0
    for cell in cells():
        if method in cell.expected():
            try:
                count += await run_cell(proxies[cell.toy], client, cell) != cell.expected()
            except (AssertionError, TimeoutError):
                count += 1
    for world, proxy in proxies.items():
        proxy.gateway.state = before[world]
    return count


def print_table(seen: dict[Cell, frozenset[str]], red: dict[str, int]) -> None:
    print(f"\n{len(seen)} cells; per hook: cells that reach it, and cells that go red without it")
    for method, count in red.items():
        print(f"  {method:34} {sum(method in hooks for hooks in seen.values()):4} {count:4}")
    print("not in the matrix:")
    for endpoint in ENDPOINTS:
        for stream in (False, True):
            if (reason := impossible(endpoint, stream)) is not None:
                print(f"  {endpoint} / {'stream' if stream else 'plain'}: {reason}")
    for route, reason in NO_EXECUTION.items():
        print(f"  {route}: {reason}")
