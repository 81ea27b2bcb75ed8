"""The guide for plugin authors shows code that runs."""

import json
import re
import sys
from pathlib import Path

import pytest

from host.runtime.manifest import load_manifest
from tests.support.example_steps import EXAMPLES
from tests.support.plugin_process import plugin_environment, python, spawn

GUIDE = (EXAMPLES.parent / "pluginapi" / "README.md").read_text()
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```", GUIDE, re.DOTALL | re.MULTILINE)
PYTHON_BLOCKS = [text for kind, text in BLOCKS if kind == "python"]


@pytest.fixture
def night_shift(tmp_path) -> Path:
    """The first plugin of the guide, as the guide says."""
    (tmp_path / "night_shift.py").write_text(PYTHON_BLOCKS[0])
    (manifest,) = [text for kind, text in BLOCKS if kind == "toml"]
    (tmp_path / "plugin.toml").write_text(manifest)
    return tmp_path


def test_the_first_plugin_has_twenty_lines_at_most():
    assert len([line for line in PYTHON_BLOCKS[0].splitlines() if line.strip()]) <= 20


async def test_the_first_plugin_describes_itself(night_shift):
    process = await spawn(
        python("night_shift.py", "--describe"), stdin=-3, stdout=-1, env=plugin_environment(), cwd=night_shift
    )
    out, err = await process.communicate()
    assert (process.returncode, err) == (0, b"")
    described = json.loads(out)
    assert (described["plugin"], described["version"]) == ("night-shift", "1.0.0")
    assert described["capabilities"] == ["plugin.register", "model.route"]


def test_its_manifest_is_valid(night_shift):
    assert load_manifest(night_shift).entry == "night_shift:NightShift"


async def test_its_test_passes(night_shift, monkeypatch):
    monkeypatch.syspath_prepend(str(night_shift))
    import night_shift as module  # type: ignore[import-not-found]

    namespace = {"NightShift": module.NightShift}
    exec(PYTHON_BLOCKS[1], namespace)
    await namespace["test_nights_are_cheap"]()
    del sys.modules["night_shift"]
