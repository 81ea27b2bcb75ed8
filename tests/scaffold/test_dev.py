"""`jackfield plugins dev`: what an author sees while editing, in an interpreted and in a compiled language."""

from pathlib import Path

import pytest

from host.scaffold.compose import create
from tests.support import toolchains
from tests.support.development import developing, is_alive, typed

pytestmark = pytest.mark.timeout(240)


def edit(path: Path, before: str, after: str) -> None:
    text = path.read_text()
    assert before in text
    path.write_text(text.replace(before, after))


async def test_each_saved_file_takes_over_each_mistake_is_shown_and_ctrl_c_leaves_no_process(tmp_path):
    folder = tmp_path / "first"
    create(folder, language="python", kind="router")
    code = folder / "first.py"
    async with developing("plugins", "dev", "first", cwd=tmp_path) as dev:
        pid = int((await dev.until(r"first 0\.1\.0, process (\d+), behind http://127\.0\.0\.1:\d+"))[1])
        curl = (await dev.until(r"^  (curl .*)"))[1]
        await dev.until("Ctrl-C ends everything")
        assert '"content":"Hello, Jackfield"' in await typed(curl, tmp_path)
        await dev.until(r"POST /v1/chat/completions  first  200  in .* ms  id \w+")
        await dev.until(r"> model\.route +first +[\d.]+ ms  executor echo: no tools$")

        edit(code, '"no tools"', '"nothing at all"')
        edit(code, "        if request.requested_model", "        print('asked')\n        if request.requested_model")
        await dev.until(r"first \| ready, generation 2")
        await dev.until(r"first \| the new version runs after [\d.]+ s")
        await typed(curl, tmp_path)
        await dev.until(r"first \| asked$")
        await dev.until(r"> model\.route .* executor echo: nothing at all$")

        code.write_text(code.read_text() + "\ndef broken(\n")
        await dev.until(r"first \| SyntaxError")
        await dev.until(rf'File "{folder}/first\.py", line \d+')
        await dev.until(r"first \| the version before goes on: .*SyntaxError")
        assert '"content":"Hello, Jackfield"' in await typed(curl, tmp_path)
        await dev.until(r"nothing at all$")

        edit(folder / "plugin.toml", 'version = "0.1.0"', 'version = "0.1.0"\nwersion = "2"')
        await dev.until(r"plugin\.toml:3: unknown key 'wersion', did you mean 'version'\?")
        edit(folder / "plugin.toml", 'wersion = "2"\n', "")
        edit(code, "\ndef broken(\n", "")
        edit(code, "print('asked')", "raise ValueError('what?')")
        await dev.until(r"the new version runs")
        await typed(curl, tmp_path)
        await dev.until(r"ValueError: what\?")
        await dev.until(r"> model\.route +first +[\d.]+ ms  failed_open.*500")

        dev.interrupt()
        assert await dev.ended() == 0
        assert dev.lines[-1] == "Stopping."
    assert not is_alive(pid)


async def test_a_plugin_that_is_built_is_built_again_and_one_that_cannot_be_built_changes_nothing(tmp_path):
    toolchains.need("cc")
    folder = tmp_path / "second"
    create(folder, language="c", kind="guard")
    edit(folder / "main.c", '#include "jackfield.h"', '#include "jackfeld.h"')
    async with developing("plugins", "dev", ".", "--port", "0", cwd=folder) as dev:
        await dev.until(r"build \| .*jackfeld\.h: No such file")
        await dev.until(r"build \| make failed with exit code 2 in")
        await dev.until("Waiting for a change")
        edit(folder / "main.c", '#include "jackfeld.h"', '#include "jackfield.h"')
        curl = (await dev.until(r"^  (curl .*)"))[1]
        assert "this word stays here" in await typed(curl, tmp_path)
        await dev.until(r"POST /v1/chat/completions  echo  403")
        await dev.until(r"> request\.intercept_before +second .* ends the request with 403")

        edit(folder / "main.c", "this word stays here", "not this one")
        await dev.until(r"second \| the new version runs")
        edit(folder / "main.c", "return NULL;", "return NUL;")
        await dev.until(r"build \| .*NUL.* undeclared")
        await dev.until(r"second \| the version before goes on")
        assert "not this one" in await typed(curl, tmp_path)
        dev.interrupt()
        assert await dev.ended() == 0
    assert not any(line.endswith("is up to date.") for line in dev.lines)


@pytest.mark.parametrize(
    ("manifest", "said"),
    [
        (None, "plugin.toml; `jackfield plugins new NAME` makes a plugin"),
        ('id = "x"\nversion = "1"\n[dev]\nbiuld = ["make"]', "unknown key 'biuld', did you mean 'build'?"),
    ],
)
async def test_a_folder_that_is_no_plugin_is_refused_with_the_reason(tmp_path, manifest, said):
    if manifest is not None:
        (tmp_path / "plugin.toml").write_text(manifest)
    async with developing("plugins", "dev", cwd=tmp_path) as dev:
        assert await dev.ended() == 2
        assert said in "\n".join(dev.lines)
