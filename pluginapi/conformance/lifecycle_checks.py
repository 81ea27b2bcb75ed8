"""Checks of the end: goaway, shutdown, the end of stdin, TERM, and what stays behind."""

import signal

from pluginabi.codec import encode
from pluginabi.payloads.lifecycle import ShutdownRequest
from pluginapi.conformance.bench import Bench
from pluginapi.conformance.outcome import NotApplicable, Unmet

SHUTDOWN = "plugin.shutdown"


async def goaway(bench: Bench) -> str:
    """What runs is finished after a goaway."""
    talk = await bench.give_back()
    try:
        busy = await bench.busy(talk)
        probe = busy.probe if busy is not None else bench.call(talk, bench.quick())
        talk.goaway()
        if busy is not None:
            await bench.let_finish(talk, busy)
        else:
            await talk.closed(probe)
    finally:
        await talk.kill()
    return f"{probe.method}: {probe.told()}"


async def shutdown(bench: Bench) -> str:
    """`plugin.shutdown` is answered, so that the host knows when state is saved."""
    if SHUTDOWN not in bench.capabilities:
        raise NotApplicable(f"its hello does not list {SHUTDOWN}")
    talk = await bench.give_back()
    try:
        probe = await talk.closed(talk.call(SHUTDOWN, encode(ShutdownRequest(reason="conformance"))))
        if probe.error is not None:
            raise Unmet("an answer", probe.told())
    finally:
        await talk.kill()
    return probe.told()


async def stdin_end(bench: Bench) -> str:
    """A plugin whose host is gone goes as well."""
    talk = await bench.give_back()
    talk.close_stdin()
    if not await talk.subject.exited_within(bench.options.exit_s):
        await talk.kill()
        raise Unmet("an end of the process after the end of its stdin", f"it runs on after {bench.options.exit_s:g} s")
    await bench.retire(talk)
    return talk.subject.how_it_ended()


async def term(bench: Bench) -> str:
    """TERM ends it even while its stdin is open."""
    talk = await bench.fresh()
    talk.subject.signal_group(signal.SIGTERM)
    if not await talk.subject.exited_within(bench.options.exit_s):
        await talk.kill()
        raise Unmet("an end of the process after SIGTERM", f"it runs on after {bench.options.exit_s:g} s")
    await bench.retire(talk)
    return talk.subject.how_it_ended()


async def no_children(bench: Bench) -> str:
    """Nothing of its process group outlives it."""
    if not bench.ended_processes:
        raise NotApplicable("no process of it ended by itself")
    if bench.left_behind:
        raise Unmet("an empty process group after its end", f"still alive: {', '.join(sorted(set(bench.left_behind)))}")
    return f"after {bench.ended_processes} processes"
