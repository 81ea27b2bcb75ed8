"""Credentials that change while the proxy stops."""

import asyncio
import json
from pathlib import Path
from typing import Any

from tests.support.proxy import running_proxy


async def test_a_file_that_changes_while_the_proxy_stops_starts_no_plugin_and_breaks_nothing(tmp_path: Path) -> None:
    faults: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: faults.append(context))
    async with running_proxy("port: 0\n", directory=tmp_path) as running:
        proxy = running.proxy
    path = tmp_path / "auths" / "claude.json"
    path.write_text(json.dumps({"type": "claude", "api_key": "k"}))
    await proxy.credential_parts.directory.refresh([str(path)])
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert "claude.json" in proxy.credentials.by_id
    assert [status.state for status in proxy.registry.statuses() if status.id == "claude"] == ["discovered"]
    assert faults == []
