"""Checks of calls, streams, cancellation and liveness."""

import asyncio
import time
from typing import Final

import msgspec
from msgspec.structs import replace

from pluginabi.body import Body
from pluginabi.codec import encode
from pluginabi.limits import BODY_HEADROOM_BYTES, CANCEL_GRACE_S, STREAM_WINDOW_ITEMS
from pluginapi.conformance.bench import PARENT_CLOSED, REGISTER, SLOW_S, Bench, answer_problem, registration_problem
from pluginapi.conformance.ledger import CREDIT
from pluginapi.conformance.outcome import NotApplicable, Unmet
from pluginapi.conformance.samples import STREAMING, has_body, sample
from pluginapi.conformance.subject import resident_bytes

UNKNOWN_METHOD: Final = "conformance.unknown"
LINE_ENDS_ELSEWHERE: Final = "line\u2028paragraph\u2029next\x85end"
"""What Unicode counts as the end of a line and JSON does not have to escape."""
LARGE_MAX_BYTES: Final = 32 * 1024 * 1024
"""Plugins that accept even more are not tried with it."""
PARALLEL_CALLS: Final = 8
SERIAL_SHARE: Final = 0.6
"""Of the time that calls one after the other would take: more than this means that nothing ran at once."""
BARRIERS: Final = 3
"""Round trips after which a producer without credit would have sent more."""
NOTHING_WAITS: Final = "no method waits for a callback or for credit with these samples"
NOTHING_LONG: Final = "no method is in progress for long enough to look meanwhile"
_TIMED_CALLS: Final = 200
_TIMED_S: Final = 1.0


async def registered(bench: Bench) -> str:
    """The configuration is taken as a host gives it."""
    await bench.talk()
    probe = bench.registration
    if probe is None:
        raise NotApplicable(f"it has neither features nor {REGISTER}, so a host sends it no configuration")
    error = probe.error
    if error is not None and error.code == "method_not_found" and REGISTER not in bench.capabilities:
        return "not listed and not known, which is fine"
    if error is not None and bench.options.config is None:
        raise NotApplicable(f"it refuses to run without configuration ({error.message}): give it with --config")
    if error is not None:
        raise Unmet("a registration with the given configuration", probe.told())
    if (problem := registration_problem(probe, bench.capabilities)) is not None:
        raise Unmet("an answer that fits plugin.register", problem)
    return probe.told()


async def methods_answer(bench: Bench) -> str:
    """Every listed method takes a plausible request."""
    told = []
    for method in bench.methods():
        talk = await bench.talk()
        probe, took_s = await bench.time(talk, method)
        if took_s >= SLOW_S and method != STREAMING:
            # A machine that was busy with something else makes nothing slow twice.
            took_s = min(took_s, (await bench.time(talk, method))[1])
        bench.durations_s[method] = took_s
        if (problem := answer_problem(probe)) is not None:
            raise Unmet(f"an answer that fits {method}", f"{problem}: {probe.told()}")
        told.append(method if probe.error is None else f"{method} (error {probe.error.http_status})")
    untried = [name for name in bench.capabilities if not name.startswith("plugin.") and name not in bench.methods()]
    if untried:
        told.append(f"not called: {', '.join(untried)}")
    if not told:
        raise NotApplicable("its hello lists nothing but plugin.* methods")
    return ", ".join(told)


async def unknown_method(bench: Bench) -> None:
    """A newer host may know more methods."""
    talk = await bench.talk()
    probe = await talk.closed(talk.call(UNKNOWN_METHOD))
    if probe.error is None or probe.error.code != "method_not_found":
        raise Unmet("an error with code method_not_found", probe.told())
    await bench.still_there(talk)


async def unknown_fields(bench: Bench) -> None:
    """A newer host may send more fields."""
    talk = await bench.talk()
    method = bench.quick()
    await talk.closed(talk.call_with_unknown_fields(method, bench.params(method)))
    await bench.still_there(talk)


async def unknown_kind(bench: Bench) -> None:
    """A newer host may send more kinds of frames."""
    talk = await bench.talk()
    if not talk.send_unknown_kind():
        raise NotApplicable("in gRPC an unknown kind is an unknown field, which the library skips")
    await bench.still_there(talk)


async def line_ends(bench: Bench) -> None:
    """Readers of lines in many languages also stop at characters that JSON allows inside of a string."""
    talk = await bench.talk()
    method = bench.quick()
    params = {**msgspec.json.decode(bench.params(method)), "x_conformance": LINE_ENDS_ELSEWHERE}
    await talk.closed(talk.call(method, encode(params)))
    await bench.still_there(talk)


async def large_body(bench: Bench) -> str:
    """The largest body a host sends."""
    method = next((name for name in bench.methods() if has_body(name) and name in bench.durations_s), None)
    if method is None or method == STREAMING or bench.frame is None:
        raise NotApplicable("no method that answered carries a body")
    frame_bytes = min(bench.frame.limits.max_frame_bytes, LARGE_MAX_BYTES)
    talk = await bench.talk()
    size = frame_bytes - BODY_HEADROOM_BYTES if frame_bytes > 2 * BODY_HEADROOM_BYTES else frame_bytes // 2
    await talk.closed(talk.call(method, _with_filler(bench, method, size)))
    await bench.still_there(talk)
    return f"{size} bytes to {method}"


async def oversize_frame(bench: Bench) -> str:
    """More than the plugin says it takes: only that call may suffer."""
    method = bench.quick()
    assert bench.frame is not None
    limit = bench.frame.limits.max_frame_bytes
    if limit > LARGE_MAX_BYTES:
        raise NotApplicable(f"its hello accepts {limit} bytes")
    if not has_body(method):
        raise NotApplicable(f"{method} carries no body")
    talk = await bench.talk()
    probe = await talk.closed(talk.call(method, _with_filler(bench, method, limit + 1024)))
    await bench.still_there(talk)
    return f"a frame of more than {limit} bytes: {probe.told()}"


def _with_filler(bench: Bench, method: str, size: int) -> bytes:
    content = "x" * (size - 256)
    body = Body.from_value({"model": "conformance", "messages": [{"role": "user", "content": content}]})
    return sample(method, inputs=bench.inputs(method), body=body)


async def parallel_calls(bench: Bench) -> str:
    """As many calls at once as the hello asks for."""
    wanted = min(PARALLEL_CALLS, bench.max_inflight)
    if wanted < 2:
        raise NotApplicable("its hello asks for one call at a time")
    talk = await bench.talk()
    slowest = bench.slowest()
    if bench.durations_s[slowest] < SLOW_S:
        method = bench.quick()
        await _time_of_many(bench, method, wanted)
        return f"{wanted} calls of {method}; they are too quick to see whether they run at once"
    # Twice each: a machine that was busy with something else just then neither accuses nor excuses the plugin.
    one_s = min([(await bench.time(talk, slowest))[1] for _ in range(2)])
    all_s = min([await _time_of_many(bench, slowest, wanted) for _ in range(2)])
    if all_s > SERIAL_SHARE * wanted * max(one_s, SLOW_S):
        raise Unmet(
            f"{wanted} calls at once, as its hello asks for {bench.max_inflight}",
            f"{all_s:.2f} s for {wanted} calls of {slowest}, {one_s:.2f} s for one: they run one after the other",
        )
    return f"{wanted} calls of {slowest} in {all_s:.2f} s, one in {one_s:.2f} s"


async def _time_of_many(bench: Bench, method: str, count: int) -> float:
    talk = await bench.talk()
    started_s = time.perf_counter()
    for probe in [bench.call(talk, method) for _ in range(count)]:
        await talk.closed(probe)
    return time.perf_counter() - started_s


async def call_beside_a_waiting_one(bench: Bench) -> str:
    """A call that waits for the host does not hold up the others."""
    if bench.max_inflight < 2:
        raise NotApplicable("its hello asks for one call at a time")
    talk = await bench.talk()
    busy = await bench.busy(talk)
    if busy is None or busy.how == "slow":
        if busy is not None:
            await bench.let_finish(talk, busy)
        raise NotApplicable(NOTHING_WAITS)
    other = talk.call(UNKNOWN_METHOD)
    if not await talk.until(lambda: other.closed):
        raise Unmet(f"an answer while {busy.probe.method} waits for {busy.how}", f"none; {await talk.state()}")
    await bench.let_finish(talk, busy)
    return f"while {busy.probe.method} waits for {busy.how}"


async def stream_opens(bench: Bench) -> str:
    """Opening result, items, end; and no stream for a caller that cannot take one."""
    if STREAMING not in bench.capabilities:
        raise NotApplicable(f"it has no {STREAMING}")
    talk = await bench.talk()
    await talk.closed(talk.call(STREAMING, bench.params(STREAMING)))
    probe = await talk.closed(bench.call(talk, STREAMING))
    return probe.told()


async def credit_respected(bench: Bench) -> str:
    """No more than the window without credit, and the rest with it."""
    if STREAMING not in bench.capabilities:
        raise NotApplicable(f"it has no {STREAMING}")
    talk = await bench.talk()
    probe = bench.call(talk, STREAMING, consumes=False)
    await talk.until(lambda: probe.closed or probe.window_is_used_up or bool(talk.held))
    if not probe.closed:
        try:
            for _ in range(BARRIERS):
                await bench.still_there(talk)
        finally:
            bench.stream_waits = probe.window_is_used_up and CREDIT not in bench.violations
        stood_at = probe.items
        talk.consume(probe)
        await talk.closed(probe)
        return f"it stopped at {stood_at} items and went on with credit to {probe.items}"
    if probe.error is not None and not probe.opened:
        raise NotApplicable(f"the sample request is answered with {probe.told()}; give one with --samples")
    return f"{probe.items} items, fewer than the window of {STREAM_WINDOW_ITEMS}: longer ones need --samples"


async def cancel_closes(bench: Bench) -> str:
    """A cancelled call is closed, once; a cancel for a finished one is ignored."""
    talk = await bench.talk()
    busy = await bench.busy(talk)
    if busy is None:
        raise NotApplicable(NOTHING_LONG)
    probe = busy.probe
    talk.cancel(probe.id, "client_gone")
    talk.release_callbacks(PARENT_CLOSED)
    await talk.closed(probe, min(2 * CANCEL_GRACE_S, talk.timeout_s))
    talk.cancel(probe.id, "client_gone")
    talk.cancel(probe.id + 1000, "client_gone")
    await bench.still_there(talk)
    if busy.how == "credit" and (probe.error is None or probe.error.code != "cancelled"):
        raise Unmet("an `end` with code cancelled for a stream that was cancelled half-way", probe.told())
    return f"{probe.method} in progress: {probe.told()}"


async def cancel_at_once(bench: Bench) -> str:
    """A call that is cancelled before it was begun is closed as well."""
    talk = await bench.talk()
    method = bench.quick()
    probe = talk.call_and_cancel(method, bench.params(method))
    await talk.closed(probe, min(2 * CANCEL_GRACE_S, talk.timeout_s))
    await bench.still_there(talk)
    return f"{method}: {probe.told()}"


async def deadline_passed(bench: Bench) -> str:
    """A call whose deadline passes is closed all the same, once, and nothing else suffers."""
    talk = await bench.talk()
    method = bench.slowest()
    probe = bench.call(talk, method, timeout_ms=1)
    await talk.until(lambda: probe.closed, 0.001)
    if "cancel" in talk.features:
        talk.cancel(probe.id, "deadline")
    await talk.closed(probe)
    await bench.still_there(talk)
    return f"{method}: {probe.told()}"


async def ping_answered(bench: Bench) -> str:
    """A pong comes at once, whatever is going on."""
    talk = await bench.talk()
    seen = await _pongs(bench)
    if seen is None:
        # Once more: what was measured as slow may have been the machine.
        seen = await _pongs(bench)
    if seen is None:
        raise Unmet("a pong while a call is in progress", "the answer to the call came first: the reader was blocked")
    await bench.still_there(talk)
    return seen


async def _pongs(bench: Bench) -> str | None:
    """What was going on meanwhile; None when the call was closed before the pongs came."""
    talk = await bench.talk()
    busy = await bench.busy(talk)
    pings = [talk.ping() for _ in range(3)]
    first: list[str] = []

    def something_came() -> bool:
        # Asked at every arrival: what came right behind it must not count.
        if not first and talk.ledger.pongs.issuperset(pings):
            first.append("pongs")
        elif not first and busy is not None and busy.probe.closed:
            first.append("answer")
        return bool(first)

    if not await talk.until(something_came):
        raise Unmet(f"a pong for each ping within {talk.timeout_s:g} s", f"none; {await talk.state()}")
    if busy is None:
        return NOTHING_LONG
    await bench.let_finish(talk, busy)
    return f"while {busy.probe.method} was in progress" if first == ["pongs"] else None


async def measure(bench: Bench) -> None:
    """Take the numbers of the report."""
    talk = await bench.talk()
    method = bench.quick()
    params = bench.params(method)
    times_s: list[float] = []
    begun_s = time.perf_counter()
    while len(times_s) < _TIMED_CALLS and time.perf_counter() - begun_s < _TIMED_S:
        started_s = time.perf_counter()
        await talk.closed(talk.call(method, params))
        times_s.append(time.perf_counter() - started_s)
    times_s.sort()
    bench.measured = replace(
        bench.measured,
        call_method=method,
        call_count=len(times_s),
        call_p50_ms=round(times_s[len(times_s) // 2] * 1000, 3),
        call_p99_ms=round(times_s[int(len(times_s) * 0.99)] * 1000, 3),
        memory_bytes=await asyncio.to_thread(resident_bytes, talk.subject.pid),
    )
