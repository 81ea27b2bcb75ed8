"""A miss, a value and a failure are three answers, with and without a server."""

from typing import Any

import pytest
import structlog
from msgspec import Raw

from host.runtime.callback_kv import KvCallbacks
from host.runtime.scope import CallScope
from host.state.local import LocalState
from host.state.redis import RedisState
from pluginabi.errors import PluginError
from pluginabi.payloads.callbacks import KvGetRequest, KvSetRequest

SCOPE = CallScope(plugin_id="p", method="model.route", permissions=frozenset({"kv"}))


class Untouchable:
    """A store that nothing may reach."""

    def __getattr__(self, name: str) -> Any:
        raise AssertionError(f"{name} was called")


@pytest.mark.parametrize(
    ("fields", "code"),
    [
        pytest.param({"key": ""}, "kv_key_invalid", id="K3-empty-key"),
        pytest.param({"key": "k", "ttl_ms": -1}, "kv_ttl_invalid", id="K3-negative-ttl"),
    ],
)
async def test_K3_what_cannot_be_meant_is_refused_before_any_command_is_sent(fields: dict[str, Any], code: str):
    class Unwanted(Untouchable):
        async def set(self, *args: Any, **kwargs: Any) -> bool:
            raise AssertionError("a command was sent")

    kv = KvCallbacks(Unwanted())  # type: ignore[arg-type]
    with pytest.raises(PluginError) as refused:
        await kv.set(SCOPE, KvSetRequest(value=Raw(b"1"), **fields))
    assert (refused.value.http_status, refused.value.code) == (400, code)


async def test_K9_without_a_configured_server_everything_is_local_and_nothing_fails():
    state = LocalState(None)
    await state.start()
    kv = KvCallbacks(state.store, nodes=lambda: state.nodes)
    assert (await kv.get(SCOPE, KvGetRequest(key="k"))).found is False
    await kv.set(SCOPE, KvSetRequest(key="k", value=Raw(b"1")))
    assert (await kv.get(SCOPE, KvGetRequest(key="k"))).found is True
    assert (state.available, state.nodes, await state.publish("t", b"x")) == (True, 1, True)
    await state.stop()


async def test_K11_a_best_effort_message_that_cannot_be_sent_is_logged_without_what_it_says():
    state = RedisState("redis://127.0.0.1:1/0")
    with structlog.testing.capture_logs() as logs:
        assert await state.publish("cooldown", b"credential-of-somebody") is False
    [entry] = logs
    assert (entry["event"], entry["topic"]) == ("state.not_published", "cooldown")
    assert "somebody" not in repr(entry)
    await state.stop()
