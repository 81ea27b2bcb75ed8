"""`pytest_plugins = ["pluginapi.testing.fixtures"]` brings these fixtures."""

import pytest

from pluginapi.testing import FakeHost, PluginHarness


@pytest.fixture
def fake_host() -> FakeHost:
    """A host that answers callbacks as scripted; give it to `plugin_harness(…, host=fake_host)`."""
    return FakeHost()


@pytest.fixture
def plugin_harness() -> type[PluginHarness]:
    """`async with plugin_harness(MyPlugin, config={…}) as plugin:` starts and registers a plugin."""
    return PluginHarness
