"""Plugins see handles; what is stored only where the operator granted it."""

import msgspec
import pytest

from pluginabi.payloads.intercept import RequestInterceptResponse
from tests.support.pipeline import FakePlugin, answering, client_request, executor, world

EXECUTE = "executor.execute"
AFTER = "request.intercept_after"


@pytest.mark.parametrize("permissions", [frozenset(), frozenset({"credential_secrets"})], ids=["handle", "secrets"])
async def test_a_key_is_shown_to_executors_and_interceptors_that_may_see_secrets_and_to_nobody_else(permissions):
    upstream = executor(answering(), permissions=permissions)
    hook = FakePlugin(id="hook", hooks={AFTER: lambda request: RequestInterceptResponse()}, permissions=permissions)
    w = world(upstream, hook)
    await w.gateway.execute(client_request())
    for (seen,) in (upstream.seen(EXECUTE), hook.seen(AFTER)):
        stored = msgspec.json.decode(seen.credential.storage) if seen.credential.storage else None
        assert stored == ({"api_key": "k1"} if permissions else None)
        assert seen.credential.handle.startswith("cred-")
    assert b"k1" not in msgspec.json.encode(upstream.seen(EXECUTE)[0]) or permissions
