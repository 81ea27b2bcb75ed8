"""TLS to the state server: who may be talked to, and what is said when the two ends do not fit."""

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import trustme
from structlog.testing import capture_logs

from host.config.model import Config, State
from host.state import redis as shared
from host.state.opening import StateSetupError, open_state
from host.state.store import SharedState
from tests.support.redis_server import PATIENCE_S, RedisServer, redis_server


@pytest.fixture
async def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[RedisServer]:
    monkeypatch.setattr(shared, "PROBE_INTERVAL_S", 0.05)
    async with redis_server(tmp_path) as running:
        yield running


@contextlib.asynccontextmanager
async def tls_in_front_of(server: RedisServer, authority: trustme.CA, *names: str) -> AsyncIterator[int]:
    """A port that speaks TLS, and passes on what arrives."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert(*names).configure_cert(context)

    async def copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(65_536):
                writer.write(data)
                await writer.drain()
        writer.close()

    async def passed_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        to_reader, to_writer = await asyncio.open_connection("127.0.0.1", server.port)
        await asyncio.gather(copy(reader, to_writer), copy(to_reader, writer))

    front = await asyncio.start_server(passed_on, "127.0.0.1", 0, ssl=context)
    try:
        yield front.sockets[0].getsockname()[1]
    finally:
        front.close()


@contextlib.asynccontextmanager
async def started(
    url: str, ca_file: Path | None = None, *, timeout_s: float = PATIENCE_S
) -> AsyncIterator[tuple[SharedState, str]]:
    """Shared state after its first attempt, and what the log says of it."""
    state = open_state(Config(state=State(url=url, ca_file=str(ca_file or ""), timeout=f"{timeout_s:g}s")))
    with capture_logs() as lines:
        await state.start()
    try:
        yield state, " ".join(line["reason"] for line in lines if line["event"] == "state.unavailable")
    finally:
        await state.stop()


async def test_a_server_is_used_whose_certificate_the_given_authority_signed_and_no_other(
    server: RedisServer, tmp_path: Path
):
    own, other = trustme.CA(), trustme.CA()
    own.cert_pem.write_to_path(str(tmp_path / "own.pem"))
    other.cert_pem.write_to_path(str(tmp_path / "other.pem"))
    async with tls_in_front_of(server, own, "127.0.0.1") as port:
        url = f"rediss://127.0.0.1:{port}/0"
        async with started(url, tmp_path / "own.pem") as (state, said):
            assert (state.available, said) == (True, "")
            assert await state.store.set("a", "k", b"1") is True
            assert await state.store.get("a", "k") == b"1"
        for ca_file in (None, tmp_path / "other.pem"):
            async with started(url, ca_file) as (state, said):
                assert (state.available, state.problem) == (False, "untrusted")
                assert "state.ca-file" in said
        # Plain words to a port that expects TLS.
        async with started(f"redis://127.0.0.1:{port}/0") as (state, said):
            assert (state.available, state.problem) == (False, "unreachable")
            assert "rediss://" in said
    async with tls_in_front_of(server, own, "elsewhere.test") as port:
        async with started(f"rediss://127.0.0.1:{port}/0", tmp_path / "own.pem") as (state, said):
            assert (state.available, state.problem) == (False, "untrusted")
            assert "127.0.0.1" in said
    # TLS to a port that expects plain words, and goes on waiting for them.
    mute = f"rediss://127.0.0.1:{server.port}/0"
    async with started(mute, tmp_path / "own.pem", timeout_s=0.5) as (state, said):
        assert (state.available, state.problem) == (False, "unreachable")
        assert "redis://" in said


@pytest.mark.parametrize("content", [None, b"nothing of the kind"])
async def test_a_file_of_authorities_that_cannot_be_used_is_told_before_anything_starts(
    tmp_path: Path, content: bytes | None
):
    path = tmp_path / "ca.pem"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(StateSetupError, match=r"state\.ca-file"):
        open_state(Config(state=State(url="rediss://127.0.0.1:1/0", ca_file=str(path))))
