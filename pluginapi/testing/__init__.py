"""Test kit for plugin authors: `PluginHarness` runs a plugin, `FakeHost` answers its callbacks.

Fixtures for pytest are in `pluginapi.testing.fixtures`.
"""

from pluginapi.cases import Case, CaseFile, read_cases
from pluginapi.testing.cases import check_case
from pluginapi.testing.fake_host import Callback, FakeHost
from pluginapi.testing.harness import LogLine, OpenStream, PluginHarness, StreamRun

__all__ = [
    "Callback",
    "Case",
    "CaseFile",
    "FakeHost",
    "LogLine",
    "OpenStream",
    "PluginHarness",
    "StreamRun",
    "check_case",
    "read_cases",
]
