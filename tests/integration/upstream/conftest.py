"""Fixtures of the upstream client's tests: a client that is always closed, a clock that moves when told, a local CA."""

import asyncio
import ssl
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any

import pytest
import trustme
import uvloop

from host.upstream import ClientLimits, UpstreamClient
from tests.support.upstream_client import LocalCa, MakeClient, ManualClock
from tests.support.upstream_servers import within


@pytest.hookimpl(optionalhook=True)
def pytest_asyncio_loop_factories(config: Any, item: Any) -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]]:
    """Everything here holds on both loops: their transports differ in more than speed."""
    return {"asyncio": asyncio.new_event_loop, "uvloop": uvloop.new_event_loop}


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
async def make_client(clock: ManualClock) -> AsyncIterator[MakeClient]:
    """Makes clients with the manual clock and a sweep every few milliseconds; closes them, nothing may be left."""
    clients: list[UpstreamClient] = []

    def make(*, ssl_context: ssl.SSLContext | None = None, **limits: Any) -> UpstreamClient:
        limits.setdefault("sweep_interval_s", 0.005)
        client = UpstreamClient(limits=ClientLimits(**limits), ssl_context=ssl_context, clock=clock)
        clients.append(client)
        return client

    yield make
    for client in clients:
        await within(client.close())
        assert client.stats().open == 0


@pytest.fixture
def client(make_client: MakeClient) -> UpstreamClient:
    return make_client()


@pytest.fixture(scope="session")
def local_ca(tmp_path_factory: pytest.TempPathFactory) -> LocalCa:
    ca = trustme.CA()
    path = tmp_path_factory.mktemp("ca") / "ca.pem"
    ca.cert_pem.write_to_path(path)
    return LocalCa(path, ca)
