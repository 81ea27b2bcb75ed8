"""What a process uses is looked at, and too much memory ends it."""

import os
from dataclasses import replace

import pytest

from host.runtime.handle import PluginState
from host.runtime.launch import ProcessLimits
from host.runtime.usage import CPU_WINDOW_S, Sample, UsageMeter, read_usage
from pluginabi.errors import PluginTransportError
from tests.support.processes import FAST, Watcher, route


def meter(**fields):
    killed = []
    defaults = {"interval_s": 0.0, "memory_limit_bytes": None, "kill": killed.append}
    return UsageMeter(1, **{**defaults, **fields}), killed


def test_the_share_of_a_processor_is_taken_over_the_last_half_minute():
    usage, _ = meter()
    assert usage.cpu_share is None
    usage.take(Sample(1, 100.0), 0.0)
    assert usage.cpu_share is None
    for second in range(1, 61):
        # Half a processor for half a minute, then a quarter.
        usage.take(Sample(1, 100.0 + min(second, 30) * 0.5 + max(0, second - 30) * 0.25), float(second))
    assert usage.cpu_share == pytest.approx(0.25)
    assert len(usage._cpu) <= CPU_WINDOW_S + 2


async def test_sampling_ends_with_the_process(within):
    samples = [Sample(5, 1.0), Sample(7, 2.0)]
    usage, killed = meter(read=lambda pid: samples.pop(0) if samples else None)
    await within(usage.run())
    assert (usage.rss_bytes, killed) == (7, [])


async def test_more_memory_than_allowed_ends_the_process(within):
    usage, killed = meter(read=lambda pid: Sample(300 << 20, 1.0), memory_limit_bytes=256 << 20)
    await within(usage.run())
    assert killed == ["it uses 300 MB of memory, its limit is 256 MB"]


def test_our_own_process_can_be_looked_at():
    sample = read_usage(os.getpid())
    assert sample is not None
    assert sample.rss_bytes > 1 << 20
    assert sample.cpu_s > 0


async def test_a_plugin_that_maps_more_than_its_limit_is_killed_and_says_why(plugins, within):
    watcher = Watcher()
    plugin = plugins(
        events=watcher,
        timings=replace(FAST, stable_s=0.0, usage_interval_s=0.02),
        limits=ProcessLimits(memory_bytes=64 << 20),
    )
    await within(plugin.start())
    # Shared memory is not counted by RLIMIT_DATA, so only the look at it finds it.
    with pytest.raises(PluginTransportError):
        await within(route(plugin, "map-shared 100"))
    await within(watcher.reached(PluginState.READY, times=2))
    assert "its limit is 64 MB" in watcher.reports[0].reason


async def test_a_running_plugin_shows_its_memory(plugins, within):
    plugin = plugins()
    await within(plugin.start())
    await within(route(plugin, "echo"))
    assert plugin.rss_bytes > 1 << 20
