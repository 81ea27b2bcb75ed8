"""An auth directory with its manager, for tests of the credentials: no proxy, no plugin."""

import json
from pathlib import Path
from typing import Any

from host.config.model import Config
from host.credentials.auth_dir import AuthDirectory
from host.credentials.editor import CredentialEditor
from host.credentials.manager import CredentialManager
from host.credentials.records import CredentialChange
from tests.support.auth_plugins import ScriptedAuth


class Site:
    """A directory with its manager, and everything the manager told."""

    def __init__(self, directory: Path, plugins: Any = None, **config: Any) -> None:
        self.path = directory / "auths"
        self.config = Config(directory=str(directory), **config)
        self.now_s = 1000.0
        self.manager = CredentialManager(clock=lambda: self.now_s)
        self.told: list[CredentialChange] = []
        self.manager.on_change = self.told.append
        self.plugins = plugins or ScriptedAuth()
        self.directory = AuthDirectory(self.manager, self.plugins, self.config)
        self.editor = CredentialEditor(self.manager, self.directory, self.plugins)

    def put(self, name: str, **members: Any) -> str:
        self.path.mkdir(exist_ok=True)
        (self.path / name).write_text(json.dumps({"type": "claude", **members}))
        return str(self.path / name)

    async def opened(self) -> "Site":
        await self.directory.scan()
        await self.directory.load()
        return self

    def ids(self) -> list[str]:
        return [found.id for found in self.manager.credentials]

    def read(self, name: str) -> Any:
        return json.loads((self.path / name).read_text())
