"""Test kit for plugin authors: `PluginHarness` runs a plugin, `FakeHost` answers its callbacks.

Fixtures for pytest are in `pluginapi.testing.fixtures`.
"""

from pluginapi.testing.fake_host import Callback, FakeHost
from pluginapi.testing.harness import LogLine, OpenStream, PluginHarness, StreamRun

__all__ = ["Callback", "FakeHost", "LogLine", "OpenStream", "PluginHarness", "StreamRun"]
