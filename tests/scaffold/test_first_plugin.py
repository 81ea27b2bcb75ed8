"""The page for beginners: every command on it is typed, in order, and prints what the page says."""

import re
from collections.abc import Iterator
from contextlib import AsyncExitStack
from itertools import pairwise
from pathlib import Path

import pytest

from tests.support import toolchains
from tests.support.development import ROOT, developing, jackfield, typed
from tests.support.ports import reserved_port

pytestmark = pytest.mark.timeout(240)
PAGE = (ROOT / "docs" / "first-plugin.md").read_text()
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)
STAYS = ("plugins dev", "serve ")
"""Commands that run until they are told to stop."""


def steps() -> Iterator[tuple[str, list[str]]]:
    """Each command with the fragments it prints."""
    for (kind, text), (next_kind, following) in pairwise([*BLOCKS, ("", "")]):
        if kind == "sh":
            yield text, following.splitlines() if next_kind == "text" else []


@pytest.fixture
def on_path(tmp_path, monkeypatch) -> None:
    """`jackfield` as if it were installed."""
    program = tmp_path / "bin" / "jackfield"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nPYTHONPATH={ROOT} exec {" ".join(jackfield())} "$@"\n')
    program.chmod(0o755)
    for name, value in toolchains.environment().items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("PATH", f"{program.parent}:{toolchains.environment()['PATH']}")


def has(fragment: str, output: str) -> bool:
    return " ".join(fragment.split()) in " ".join(output.split())


async def test_the_first_plugin_is_made_tested_watched_changed_and_used(tmp_path, on_path):
    toolchains.need("go")
    place = tmp_path / "w"
    place.mkdir()
    async with AsyncExitStack() as stack:
        ports = {written: str(stack.enter_context(reserved_port())) for written in ("8400", "8317")}
        running = []
        for command, fragments in steps():
            for written, port in ports.items():
                command = command.replace(written, port)
                fragments = [fragment.replace(written, port) for fragment in fragments]
            if any(word in command for word in STAYS):
                use_port(place, ports["8317"])
                dev = await stack.enter_async_context(developing(*words_of(command), cwd=place))
                running.append(dev)
                for fragment in fragments:
                    await dev.until(re.escape(fragment))
                continue
            output = await typed(command, place)
            for fragment in fragments:
                assert has(fragment, output), f"{command}\n---\n{output}\n--- has no {fragment!r}"
            if "sed -i" in command and "router.py" in command:
                await running[0].until("the new version runs")
        assert len(running) == 2
        for dev in reversed(running):
            dev.interrupt()
            assert await dev.ended() == 0


def use_port(place: Path, port: str) -> None:
    """The page's port may be taken on this machine."""
    file = place / "my-gateway" / "config.yaml"
    if file.exists():
        file.write_text(file.read_text().replace("8317", port))


def words_of(command: str) -> list[str]:
    return command.split()[1:]
