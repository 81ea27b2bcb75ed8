"""Status survives: 48 statuses x six boundaries x three carriers, every field of the error object equal.

`make matrix` prints the number of cells and any that differ. Real processes, a real gRPC session, the real gateway.
"""

import asyncio
import shutil
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest
from msgspec.structs import replace

from host.app import Proxy
from host.config.load import parse_config
from host.errors import to_error_body
from host.pipeline.request import ClientRequest, Principal
from host.runtime.scope import CallScope
from pluginabi.body import Body
from pluginabi.errors import ErrorBody, PluginError, normalised
from pluginabi.payloads.callbacks import ModelCallRequest, ModelCallResponse

CARRIERS = {
    "inprocess": 'runtime = "inprocess"',
    "json": 'runtime = "process"\nprotocol = "json"',
    "grpc": 'runtime = "process"\nprotocol = "grpc"',
}
BOUNDARIES = ("plugin answer", "callback answer", "nested call", "stream opening", "mid-stream", "stream end")
STATUSES = (*range(400, 419), *range(421, 430), 431, 440, 451, 460, 499, *range(500, 512), 520, 529, 599)
BODIES = (
    Body(json=msgspec.Raw(b'{"error":{"message":"no","n":12345678901234567890}}')),
    Body(text="plain words, no JSON \u2713"),
    Body(base64=b"\x00\xff\xfe bytes"),
)


def error_of(status: int) -> ErrorBody:
    """An error object with every field set, different for every status."""
    return ErrorBody(
        message=f"status {status} must survive \u2713",
        code=f"code_{status}",
        http_status=status,
        retryable=(None, True, False)[status % 3],
        retry_after_ms=status * 7,
        scope=("request", "model", "credential", "provider", "connection")[status % 5],
        headers={"x-quota": [str(status), "second"], "retry-after": ["3"]},
        body=BODIES[status % 3],
        body_protocol=("openai", "claude", "gemini")[status % 3],
        origin="upstream" if status % 2 else None,
        details={"number": status, "nested": {"list": [1, "two", None]}},
    )


def comparable(error: ErrorBody) -> dict[str, Any]:
    """Every field as plain values; a body by its bytes, whatever form the carrier chose."""
    body = error.body.to_bytes() if isinstance(error.body, Body) else None
    plain: dict[str, Any] = msgspec.to_builtins(replace(error, body=msgspec.UNSET))
    return {**plain, "body": body}


class Ordered(msgspec.Struct):
    """The part of the plugin's order that the scripted host reads."""

    error: ErrorBody


class ScriptedModels:
    """Answers a plugin's `host.model.execute` with the error its request names, without any plugin behind it."""

    async def execute(self, params: ModelCallRequest, scope: CallScope) -> ModelCallResponse:
        assert isinstance(params.body, Body)
        error = msgspec.json.decode(params.body.to_bytes(), type=Ordered).error
        raise PluginError(normalised(error, default_origin="plugin"))

    async def execute_stream(self, params: ModelCallRequest, scope: CallScope) -> Any:
        raise AssertionError("not called")


def write_plugins(directory: Path) -> None:
    for carrier, lines in CARRIERS.items():
        folder = directory / f"err-{carrier}"
        folder.mkdir(parents=True)
        shutil.copy(Path(__file__).with_name("error_plugin.py"), folder)
        entry = 'entry = "error_plugin:ErrorOnDemand"'
        text = f'id = "err-{carrier}"\nversion = "1.0.0"\n{lines}\n{entry}\npermissions = ["model"]\n'
        (folder / "plugin.toml").write_text(text)


def config_text() -> str:
    configs = "\n".join(f"    err-{carrier}: {{enabled: true}}" for carrier in CARRIERS)
    policy = "\n".join(
        f"    err-{carrier}: {{permissions: [model], runtime: {'inprocess' if carrier == 'inprocess' else 'process'}}}"
        for carrier in CARRIERS
    )
    return f"port: 0\ndisable-cooling: true\nplugins:\n  enabled: true\n  configs:\n{configs}\n  policy:\n{policy}\n"


@asynccontextmanager
async def gateway_with_plugins(directory: Path) -> AsyncIterator[Proxy]:
    write_plugins(directory / "plugins")
    file = directory / "config.yaml"
    file.write_text(config_text())
    proxy = Proxy(parse_config(file.read_text(), file=str(file)), config_path=file, watch=False)
    try:
        async with asyncio.timeout(60):
            await proxy.start()
        yield proxy
    finally:
        await proxy.stop()


def cells() -> Iterator[tuple[str, str, int]]:
    for carrier in CARRIERS:
        for boundary in BOUNDARIES:
            for status in STATUSES:
                yield carrier, boundary, status


async def error_seen(proxy: Proxy, carrier: str, boundary: str, error: ErrorBody) -> ErrorBody:
    """What arrives on the far side of the boundary."""
    model = f"err-{carrier}"
    stream = boundary in ("stream opening", "mid-stream", "stream end")
    order = {"model": model, "boundary": boundary, "error": error, "stream": stream}
    request = ClientRequest(
        request_id=f"{carrier}-{boundary}-{error.http_status}",
        protocol="openai",
        endpoint="POST /v1/chat/completions",
        model=model,
        stream=stream,
        body=msgspec.json.encode(order),
        principal=Principal(name="matrix", provider="anonymous"),
    )
    try:
        if not stream:
            response = await proxy.gateway.execute(request)
            return msgspec.json.decode(response.body, type=ErrorBody)
        opened = await proxy.gateway.execute_stream(request)
        async for _item in opened:  # type: ignore[union-attr]  # nothing terminates these requests
            pass
    except Exception as raised:
        return to_error_body(raised)
    raise AssertionError(f"no error at {boundary}")


async def difference(proxy: Proxy, carrier: str, boundary: str, status: int) -> str | None:
    error = error_of(status)
    seen = await error_seen(proxy, carrier, boundary, error)
    expected = comparable(normalised(error, default_origin="plugin"))
    got = comparable(seen)
    if got == expected:
        return None
    fields = {name: (expected.get(name), got.get(name)) for name in expected.keys() | got.keys()}
    wrong = {name: pair for name, pair in fields.items() if pair[0] != pair[1]}
    return f"{carrier} / {boundary} / {status}: (expected, got) {wrong}"


@pytest.mark.timeout(180)
async def test_every_error_field_survives_every_boundary_on_every_carrier(tmp_path, capsys):
    async with gateway_with_plugins(tmp_path) as proxy:
        gate = asyncio.Semaphore(16)
        nested_models = proxy.callbacks.models

        async def check(cell: tuple[str, str, int]) -> str | None:
            async with gate:
                return await difference(proxy, *cell)

        through_host = [cell for cell in cells() if cell[1] == "callback answer"]
        others = [cell for cell in cells() if cell[1] != "callback answer"]
        found = await asyncio.gather(*(check(cell) for cell in others))
        proxy.callbacks.models = ScriptedModels()
        found += await asyncio.gather(*(check(cell) for cell in through_host))
        proxy.callbacks.models = nested_models
    differing = [text for text in found if text is not None]
    with capsys.disabled():
        shape = f"{len(STATUSES)} statuses x {len(BOUNDARIES)} boundaries x {len(CARRIERS)} carriers"
        print(f"\n{len(found)} cells ({shape}), {len(differing)} differ")
        print("\n".join(differing[:20]))
    assert len(STATUSES) >= 40 and len(found) == len(STATUSES) * 6 * 3
    assert differing == []
