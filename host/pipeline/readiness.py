"""executor.prepare: an executor gets a credential ready before its first request (spec credentials 5.9)."""

from functools import partial
from typing import Final

from host.credentials.spoken import without_secrets
from host.pipeline.execution import Execution
from host.pipeline.shown import shown_credential
from host.pipeline.state import Lane
from host.runtime.invoke import Invoker
from pluginabi.payloads.executor import ExecutorPrepareRequest

MAX_READY: Final = 32_768
"""Credentials that plugins hand out come without end: the oldest are forgotten, and made ready once more."""


def rests(ex: Execution, lane: Lane, *upstreams: str) -> bool:
    """Whether the credential can serve none of these models right now."""
    book, credential_id = ex.state.pool.book, lane.credential.id
    return all(book.block(credential_id, lane.key_of(upstream)) is not None for upstream in upstreams)


async def make_ready(invoker: Invoker, ex: Execution, lane: Lane) -> None:
    """Return once the plugin has the credential ready: asked once per credential as it is and generation of the plugin;
    or once the credential rests, because it could not be made ready for another request, say.

    Requests for the same credential wait for each other, and for a refresh of its token. Raises what the plugin raised.
    Cancelling it cancels the call; the next request asks again.
    """
    binding, credential_id = lane.prepare, lane.credential.id
    if binding is None:
        return
    health, by_id = ex.state.pool.health, ex.state.manager.by_id
    # One that a plugin handed out is nobody else's: the same object as long as it says the same.
    state = binding.handle, by_id.get(credential_id, lane.credential)
    if health.ready.get(credential_id) == state:
        return
    async with ex.state.manager.exclusive(credential_id):
        if health.ready.get(credential_id) == state or rests(ex, lane, *lane.upstreams):
            return
        shown = shown_credential(ex.state.manager, lane.credential, lane.handle, binding)
        assert shown is not None
        request = ExecutorPrepareRequest(
            request_id=ex.scope.request_id,
            parent_request_id=ex.scope.parent_request_id,
            attempt=ex.scope.attempt,
            credential=shown,
            model=lane.model,
        )
        ex.scope.mask = partial(without_secrets, credential=lane.credential)
        await invoker.call(binding, lambda _: request, ex.scope)
        if len(health.ready) >= MAX_READY:
            del health.ready[next(iter(health.ready))]
        health.ready[credential_id] = binding.handle, by_id.get(credential_id, lane.credential)
