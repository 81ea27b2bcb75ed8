"""A directory with a configuration file, a fake provider and a client of whatever is served."""

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from tests.support.fake_upstream import FakeUpstream

CHAT: dict[str, Any] = {"model": "m1", "messages": [{"role": "user", "content": "Hi"}]}


@dataclass(frozen=True, slots=True)
class Site:
    """Where an operator works: config.yaml and plugins/."""

    directory: Path

    @property
    def config_file(self) -> Path:
        return self.directory / "config.yaml"

    @property
    def plugins(self) -> Path:
        return self.directory / "plugins"

    def configure(self, **keys: Any) -> None:
        """Replace the file, as editors do; underscores in key names become dashes."""
        draft = self.directory / "config.yaml.draft"
        with draft.open("w", encoding="utf-8") as file:
            YAML(typ="safe").dump({"port": 0, **{name.replace("_", "-"): keys[name] for name in keys}}, file)
        draft.rename(self.config_file)


def provider(upstream: FakeUpstream, *models: str) -> list[dict[str, Any]]:
    """A value for `openai_compatibility`."""
    entry = {"name": "acme", "base-url": f"{upstream.url}/v1", "api-key-entries": [{"api-key": "up-key"}]}
    return [{**entry, "models": [{"name": model} for model in models or ("m1",)]}]


def enabled(*plugin_ids: str) -> dict[str, Any]:
    """A value for `plugins`."""
    return {"enabled": True, "configs": {plugin_id: {"enabled": True} for plugin_id in plugin_ids}}


@pytest.fixture
def site() -> Iterator[Site]:
    # Short, because the control socket's path has a limit.
    with tempfile.TemporaryDirectory(prefix="jf-") as made:
        site = Site(Path(made))
        site.configure()
        yield site
