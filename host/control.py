"""The local control socket: how `jackfield plugins …` talks to a running proxy on the same configuration file.

A Unix socket in a directory only this user can enter; there is no other authentication, and nothing here installs or
first enables code.
"""

import hashlib
import http.client
import os
import socket
import tempfile
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
from aiohttp import web


@dataclass(frozen=True, slots=True)
class ControlActions:
    """What the running proxy offers."""

    list_plugins: Callable[[], Any]
    reload_plugin: Callable[[str], Awaitable[tuple[str, bool]]]
    """Returns what happened in a sentence, and whether the new files run now. Raises KeyError for an unknown id."""
    explain: Callable[[str], Any]
    """The decisions of a request by its id. Raises KeyError when it is unknown or forgotten."""


def socket_path(config_path: Path) -> Path:
    """Where the proxy that serves this file listens; the path is short enough for every system's limit."""
    digest = hashlib.sha256(os.fsencode(os.path.realpath(config_path))).hexdigest()[:16]
    base = os.environ.get("XDG_RUNTIME_DIR") or tempfile.gettempdir()
    return Path(base) / f"jackfield-{os.getuid()}" / f"{digest}.sock"


class ControlServer:
    """Serves `ControlActions` until stopped."""

    def __init__(self, path: Path, actions: ControlActions) -> None:
        self._path = path
        self._actions = actions
        self._runner: web.AppRunner | None = None

    async def start(self) -> None:
        """Listen; a socket left by a killed proxy is replaced. Raises PermissionError for a foreign directory."""
        self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        if self._path.parent.stat().st_uid != os.getuid():
            raise PermissionError(f"{self._path.parent} belongs to somebody else")
        self._path.parent.chmod(0o700)
        self._path.unlink(missing_ok=True)
        app = web.Application()
        app.router.add_get("/plugins", self._list)
        app.router.add_post("/plugins/{id}/reload", self._reload)
        app.router.add_get("/requests/{id}", self._explain)
        self._runner = web.AppRunner(app, access_log=None)
        await self._runner.setup()
        await web.UnixSite(self._runner, str(self._path)).start()

    async def stop(self) -> None:
        """Stop listening and remove the socket."""
        if self._runner is not None:
            await self._runner.cleanup()
            self._path.unlink(missing_ok=True)

    async def _list(self, request: web.Request) -> web.Response:
        return web.Response(body=msgspec.json.encode(self._actions.list_plugins()), content_type="application/json")

    async def _explain(self, request: web.Request) -> web.Response:
        try:
            found = self._actions.explain(request.match_info["id"])
        except KeyError:
            return web.json_response({"error": f"no request {request.match_info['id']!r} is remembered"}, status=404)
        return web.Response(body=msgspec.json.encode(found), content_type="application/json")

    async def _reload(self, request: web.Request) -> web.Response:
        try:
            outcome, loaded = await self._actions.reload_plugin(request.match_info["id"])
        except KeyError:
            return web.json_response({"error": f"no plugin {request.match_info['id']!r}"}, status=404)
        return web.json_response({"outcome": outcome, "loaded": loaded})


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: Path, timeout_s: float) -> None:
        super().__init__("localhost", timeout=timeout_s)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self._path))


def ask(config_path: Path, method: str, path: str, *, timeout_s: float = 60.0) -> tuple[int, Mapping[str, Any]] | None:
    """Ask the proxy that runs on this file; None when none runs."""
    connection = _UnixConnection(socket_path(config_path), timeout_s)
    try:
        connection.request(method, path)
        response = connection.getresponse()
        document = msgspec.json.decode(response.read())
    except (FileNotFoundError, ConnectionRefusedError):
        return None
    finally:
        connection.close()
    return response.status, document
