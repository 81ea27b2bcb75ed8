"""Runs the cases of `cases.json` against a plugin in the test's own process, where breakpoints work."""

from pluginabi.errors import PluginError
from pluginapi.cases import Case, told
from pluginapi.testing.harness import PluginHarness


async def check_case(plugin: PluginHarness, case: Case) -> None:
    """Make one call; raises AssertionError when it does not come to what the case expects."""
    try:
        if case.streams:
            run = await plugin.stream(case.method, case.request())
            seen = told(run.result, items=run.items)
        else:
            seen = told(await plugin.call(case.method, case.request()))
    except PluginError as error:
        seen = told(error=error.body)
    assert seen == case.expected, f"{case.name}: {seen} instead of {case.expected}"
