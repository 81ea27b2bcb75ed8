"""The matrix: every test of this folder runs over each carrier, most of them in both profiles."""

import asyncio
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import uvloop

from tests.support.wire import CARRIERS, PROFILES, BarePeer, Pair, Side, Tasks, channels, within

ACCEPTS_BYTES = 16 << 20


@pytest.hookimpl(optionalhook=True)
def pytest_asyncio_loop_factories(config: pytest.Config, item: pytest.Item) -> dict[str, Any]:
    """The plain event loop, and the one that the host prefers."""
    return {"asyncio": asyncio.new_event_loop, "uvloop": uvloop.new_event_loop}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """uvloop only where its transports differ and the host uses them: pipes and gRPC."""
    items[:] = [item for item in items if "uvloop-" not in item.name or _is_worth_uvloop(item)]


def _is_worth_uvloop(item: pytest.Item) -> bool:
    callspec = getattr(item, "callspec", None)
    return callspec is not None and callspec.params.get("carrier") in ("pipes", "grpc")


@pytest.fixture(autouse=True)
async def nothing_goes_wrong_unseen() -> AsyncIterator[None]:
    """What the event loop would only log fails the test."""
    unseen: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: unseen.append(context))
    yield
    # grpc.aio tells a later loop of events for one that is closed; a host has one loop for its whole life.
    assert [context for context in unseen if "PollerCompletionQueue" not in context["message"]] == []


@pytest.fixture(params=CARRIERS)
def carrier(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(params=sorted(PROFILES))
def profile(request: pytest.FixtureRequest) -> frozenset[str]:
    return PROFILES[request.param]


@pytest.fixture
def folder() -> Iterator[Path]:
    """A short path: the kernel allows 107 bytes for a socket."""
    with tempfile.TemporaryDirectory(prefix="jf-") as path:
        yield Path(path)


@asynccontextmanager
async def pair_over(
    carrier: str, folder: Path, features: frozenset[str], *, host_accepts: int, plugin_accepts: int
) -> AsyncIterator[Pair]:
    tasks = Tasks()
    limits = {"host_accepts": host_accepts, "plugin_accepts": plugin_accepts}
    async with channels(carrier, folder, **limits) as (host_channel, plugin_channel):
        host = Side(host_channel, "host", features, plugin_accepts, tasks)
        plugin = Side(plugin_channel, "plugin", features, host_accepts, tasks)
        try:
            yield Pair(host, plugin, tasks)
        finally:
            await within(host.session.close())
            await within(plugin.session.close())
            await within(host.reader)
            await within(plugin.reader)
            await tasks.stop()


@pytest.fixture
async def pair(carrier: str, profile: frozenset[str], folder: Path) -> AsyncIterator[Pair]:
    """Two sessions, in both profiles."""
    async with pair_over(carrier, folder, profile, host_accepts=ACCEPTS_BYTES, plugin_accepts=ACCEPTS_BYTES) as pair:
        yield pair


@pytest.fixture
async def full_pair(carrier: str, folder: Path) -> AsyncIterator[Pair]:
    """Two sessions with every feature."""
    limits = {"host_accepts": ACCEPTS_BYTES, "plugin_accepts": ACCEPTS_BYTES}
    async with pair_over(carrier, folder, PROFILES["full"], **limits) as pair:
        yield pair


@pytest.fixture
async def small_pair(carrier: str, profile: frozenset[str], folder: Path) -> AsyncIterator[Pair]:
    """Two sessions that accept frames of 64 KiB at most."""
    async with pair_over(carrier, folder, profile, host_accepts=1 << 16, plugin_accepts=1 << 16) as pair:
        yield pair


BareFactory = Callable[..., AbstractAsyncContextManager[tuple[Side, BarePeer]]]


@pytest.fixture
def bare(carrier: str, folder: Path) -> BareFactory:
    """`async with bare(features=..., role="host") as (side, peer)`: a session against a scripted peer."""

    @asynccontextmanager
    async def factory(
        *,
        features: frozenset[str] = PROFILES["full"],
        role: str = "host",
        accepts: int = ACCEPTS_BYTES,
        peer_accepts: int = ACCEPTS_BYTES,
    ) -> AsyncIterator[tuple[Side, BarePeer]]:
        tasks = Tasks()
        async with channels(carrier, folder, host_accepts=accepts, plugin_accepts=peer_accepts) as (ours, theirs):
            side = Side(ours, role, features, peer_accepts, tasks)
            # The peer may break the rules on purpose, also that of frame sizes.
            theirs.send_limit = 1 << 30
            peer = BarePeer(theirs)
            try:
                yield side, peer
            finally:
                await within(side.session.close())
                await within(side.reader)
                await tasks.stop()

    return factory
