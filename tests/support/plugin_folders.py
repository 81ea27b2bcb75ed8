"""Plugin folders as an operator drops them into `plugins/`; without the SDK, so that they start in milliseconds."""

from pathlib import Path

_PROGRAM = """\
import json, sys
{prelude}
def send(frame):
    sys.stdout.write(json.dumps(frame) + "\\n")
    sys.stdout.flush()

for line in sys.stdin:
    frame = json.loads(line)
    if frame["kind"] == "hello":
        hello = {{"kind": "hello", "abi": [1], "schema": 1, "plugin": {plugin_id!r}, "version": "1.0.0"}}
        send({{**hello, "capabilities": ["request.intercept_before"]}})
    elif frame["kind"] == "call":
        answer = {{"terminate": {{"status": 200, "body": {{"json": {{"says": {says!r}}}}}}}}}
        send({{"kind": "result", "id": frame["id"], "ok": True, "result": answer}})
{epilogue}
"""


def write_greeter(
    plugins: Path,
    plugin_id: str = "greeter",
    *,
    says: str = "hello",
    prelude: str = "",
    epilogue: str = "",
    toml: str = "",
) -> Path:
    """A plugin that answers every request itself with `{"says": says}`. `prelude` runs before its hello, `epilogue` at
    the end of its input. The folder appears at once and whole."""
    folder = plugins / plugin_id
    hidden = plugins.parent / f".{plugin_id}-new"
    target = folder if folder.exists() else hidden
    target.mkdir(parents=True, exist_ok=True)
    program = _PROGRAM.format(prelude=prelude, epilogue=epilogue, plugin_id=plugin_id, says=says)
    # Whole, and without anything beside it: somebody may watch the folder.
    draft = plugins.parent / f".{plugin_id}-main"
    draft.write_text(program, encoding="utf-8")
    draft.rename(target / "main.py")
    command = f"id = {plugin_id!r}\nversion = '1.0.0'\ncommand = ['{{python}}', '-S', 'main.py']\n"
    if target is hidden or toml:
        (target / "plugin.toml").write_text(command + toml, encoding="utf-8")
    if target is hidden:
        plugins.mkdir(exist_ok=True)
        hidden.rename(folder)
    return folder
