"""The wheel, installed into an environment of its own, runs the demo: nothing of the checkout is needed."""

import asyncio
import site
import sys
import sysconfig
import tempfile
import venv
import zipfile
from collections.abc import Iterator
from pathlib import Path

import aiohttp
import pytest

from tests.support.proxy import ROOT, serve_process

BUILD_S = 120
PACKAGES = ("host", "pluginabi", "pluginapi", "plugins")


async def run(*command: str, cwd: Path) -> str:
    """stdout of a command that has to succeed."""
    process = await asyncio.create_subprocess_exec(
        *command,
        cwd=cwd,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    try:
        async with asyncio.timeout(BUILD_S):
            out, _ = await process.communicate()
    except TimeoutError:
        process.kill()
        await process.wait()
        raise
    assert process.returncode == 0, out.decode()
    return out.decode()


@pytest.fixture
def elsewhere() -> Iterator[Path]:
    """A directory outside of the checkout; short, because the control socket's path has a limit."""
    with tempfile.TemporaryDirectory(prefix="jf-") as made:
        yield Path(made)


async def test_the_wheel_installed_alone_runs_the_demo(elsewhere: Path) -> None:
    await run(
        *(sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(elsewhere), str(ROOT)), cwd=ROOT
    )
    (wheel,) = elsewhere.glob("jackfield-*.whl")
    top_level = {name.partition("/")[0] for name in zipfile.ZipFile(wheel).namelist()}
    assert {name for name in top_level if not name.endswith(".dist-info")} == set(PACKAGES)
    home = elsewhere / "venv"
    venv.create(home, with_pip=False, symlinks=True)
    python, jackfield = home / "bin" / "python", home / "bin" / "jackfield"
    await run(
        *(sys.executable, "-m", "pip", "--python", str(python), "install", "--no-deps", "--no-index", str(wheel)),
        cwd=elsewhere,
    )
    # Dependencies come from where the tests run. A .pth in there, of an editable install say, is not followed.
    installed = Path(sysconfig.get_path("purelib", vars={"base": str(home), "platbase": str(home)}))
    (installed / "dependencies.pth").write_text("\n".join(site.getsitepackages()), encoding="utf-8")
    code = "import host, pluginabi, pluginapi, plugins; print(host.__file__, pluginapi.__file__, plugins.__path__[0])"
    for found in (await run(str(python), "-c", code, cwd=elsewhere)).split():
        assert Path(found).is_relative_to(installed), found
    assert (await run(str(jackfield), "version", cwd=elsewhere)).startswith("jackfield ")

    await run(str(jackfield), "plugins", "new", "made", "--lang", "c", "--kind", "guard", cwd=elsewhere)
    assert (elsewhere / "made" / "jackfield.c").exists(), "templates are part of the wheel"

    directory = elsewhere / "demo"
    directory.mkdir()
    (directory / "config.yaml").write_text("port: 0\n", encoding="utf-8")
    async with (
        serve_process(
            directory / "config.yaml",
            "--demo",
            command=[str(jackfield)],
            directory=elsewhere,
            environment={"PYTHONPATH": ""},
        ) as served,
        aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=60)) as client,
    ):
        asked = {"model": "demo-1", "messages": [{"role": "user", "content": "from the wheel"}]}
        async with client.post(f"{served.url}/v1/chat/completions", json=asked) as response:
            answer = await response.json()
        assert answer["choices"][0]["message"]["content"] == "from the wheel"
        async with client.post(f"{served.url}/v1/chat/completions", json={**asked, "stream": True}) as response:
            assert (await response.text()).endswith("data: [DONE]\n\n")
