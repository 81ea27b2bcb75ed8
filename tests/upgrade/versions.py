"""The plugin that is upgraded, in as many versions as are wanted, and the ways in which a new version can be broken."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

PLUGIN_ID: Final = "tally"
OWN_MODEL: Final = "own"
"""Requests for it are routed to the plugin itself, which asks the upstream through the host."""

_MANIFEST: Final = """\
id = "tally"
version = "{version}"
entry = "tally:Tally"
permissions = ["http"]
{carrier}
"""

_CODE: Final = '''\
"""Writes down each request it sees, once at its beginning, once per use of an upstream, and once at its end."""

import os

from pluginapi import *

VERSION = "{version}"


class Tally(Plugin):
    inputs = {{"request.intercept_before": ["body:/user"], "executor.execute_stream": ["body"]}}

    async def plugin_register(self, request):
        self.configure(request)
        return RegisterResponse(executor=ExecutorRegistration(input_formats=["openai"], output_formats=["openai"]))

{reconfigure}
    def configure(self, request):
        if request.config["round"] < 0:
            raise PluginError("there is no negative round", http_status=400)
        self.file = os.open(request.config["ledger"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        self.url = request.config["url"]

    async def plugin_shutdown(self, request):
        os.close(self.file)

    def note(self, *words):
        os.write(self.file, " ".join(words).encode() + b"\\n")

    async def model_route(self, request):
        return ModelRouteResponse(target_kind="self") if request.requested_model == "own" else None

    async def request_intercept_before(self, request):
        self.note("began", request.request_id, request.body_parts["/user"])
        return RequestInterceptResponse(headers={{"x-tally": [VERSION]}})

    async def usage_handle(self, request):
        self.note("used", request.request_id)

    async def request_complete(self, request):
        self.note("ended", request.request_id, request.outcome)

    async def response_intercept_stream_chunk(self, request):
        return None

    async def executor_execute_stream(self, request, ctx):
        headers = {{"content-type": "application/json"}}
        async with ctx.http.stream("POST", self.url, headers=headers, body=request.body.value()) as upstream:
            async for piece in upstream:
                yield piece


if __name__ == "__main__":
    serve(Tally)
'''
_RECONFIGURE: Final = """\
    async def plugin_reconfigure(self, request):
        old = self.file
        self.configure(request)
        os.close(old)
        return RegisterResponse(executor=ExecutorRegistration(input_formats=["openai"], output_formats=["openai"]))

"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Broken:
    """A version or a config that must not replace the one that serves; `says` is part of the reason in the list."""

    name: str
    says: str
    prelude: str = ""
    """Put before the plugin's code."""
    replaced: tuple[str, str] | None = None
    """Of the plugin's code."""
    manifest: str = ""
    section: Mapping[str, Any] = field(default_factory=dict)
    """Of its config; the files stay as they are."""
    inprocess: bool = True
    """Whether a plugin inside the host can be broken this way."""


BROKEN: Final = (
    Broken(name="syntax error", says="SyntaxError", prelude="def nothing(:\n"),
    Broken(name="refuses its config", section={"round": -1}, says="there is no negative round"),
    Broken(name="exits before its hello", says="no licence", prelude="raise SystemExit('no licence')\n"),
    Broken(name="misses a secret", section={"token": {"env": "NOT_THERE_AT_ALL"}}, says="NOT_THERE_AT_ALL"),
    Broken(
        name="refuses to register",
        says="not today",
        replaced=("        self.configure(request)\n", "        raise PluginError('not today', http_status=400)\n"),
    ),
    Broken(name="a manifest with a typo", says="comand", manifest='comand = ["x"]\n'),
    Broken(
        name="declares what it lacks",
        says="auth.refresh",
        replaced=("(executor=", "(capabilities=['auth.refresh'], executor="),
    ),
    Broken(name="never says hello", says="hello", prelude="import time; time.sleep(3600)\n", inprocess=False),
)


@dataclass(frozen=True, slots=True)
class PluginFolder:
    """Where the plugin's files are replaced, each of them at once."""

    folder: Path
    carrier: str

    def write(self, number: int, *, broken: Broken | None = None) -> str:
        """Version `1.0.<number>`, whole or broken. Every second one takes a new config while it runs."""
        version = f"1.0.{number}"
        code = _CODE.format(version=version, reconfigure=_RECONFIGURE if number % 2 else "")
        manifest = _MANIFEST.format(version=version, carrier=self.carrier)
        if broken is not None:
            code, manifest = broken.prelude + code, broken.manifest + manifest
            if broken.replaced is not None:
                code = code.replace(*broken.replaced)
        self.folder.mkdir(parents=True, exist_ok=True)
        replace_file(self.folder / "tally.py", code)
        replace_file(self.folder / "plugin.toml", manifest)
        return version


def replace_file(path: Path, text: str) -> None:
    """Whoever reads the file sees the old text or the new one."""
    draft = path.with_name(f".{path.name}.draft")
    draft.write_text(text, encoding="utf-8")
    os.replace(draft, path)
