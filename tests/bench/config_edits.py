"""Edits of one of 10,000 keys in a configuration file, through the endpoints of the management API.

    python tests/bench/config_edits.py

Prints one JSON object: milliseconds of processor time, from the call until the file is written and read again.
"""

import asyncio
import json
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Any, cast

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from host.config.load import parse_config
from host.credentials.config_keys import exclude_key
from host.credentials.configured import ConfiguredKeys
from host.credentials.ids import auth_index
from host.credentials.records import HandleMint
from host.management.applier import ConfigApplier
from host.management.calls import Call
from host.management.client_keys import ClientKeyEndpoints
from host.management.config_file import ConfigFile
from host.management.masks import Masks
from host.management.provider_keys import ProviderKeyEndpoints
from host.management.table import Table
from host.tasks import TaskGroup

KEYS, ENTRIES, ROUNDS = 10_000, 5_000, 5


def text() -> str:
    """Keys of one section, of one provider, and of clients, with comments between them."""
    lines = ["# The pool.", "request-retry: 3", "claude-api-key:"]
    for number in range(KEYS):
        lines += [f"  # Key {number}.", f"  - api-key: sk-{number:06d} # bought"] if number % 50 == 0 else []
        lines += [f"  - api-key: sk-{number:06d}"] if number % 50 else []
        lines += [f"    base-url: https://c{number % 7}.test", "    priority: 3"]
    lines += ["openai-compatibility:", "  - name: big", "    base-url: https://big.test/v1", "    api-key-entries:"]
    lines += [f"      - api-key: key-{number}" for number in range(ENTRIES)]
    lines += ["api-keys:", *(f"  - client-{number:06d}" for number in range(KEYS)), "# The end."]
    return "\n".join(lines) + "\n"


class Site:
    """A configuration file and its endpoints."""

    def __init__(self, file: Path) -> None:
        async def applied(loaded: object) -> None:
            return None

        self.file = file
        self.read = parse_config(file.read_text(), file=str(file))
        config_file = ConfigFile(file, ConfigApplier(applied, TaskGroup("bench")), lambda: self.read.config)
        masks = Masks(lambda: b"key", plugin_secrets=lambda plugin_id, section: frozenset())
        self._file = config_file
        self._table = Table(
            [*ProviderKeyEndpoints(config_file, masks).endpoints(), *ClientKeyEndpoints(config_file, masks).endpoints()]
        )

    async def call(self, method: str, path: str, body: Any = None, **query: str) -> float:
        """Milliseconds that it took."""
        found = self._table.find(method, [path])
        assert found is not None
        call = Call(
            method=method,
            path=f"/{path}",
            request=cast(Any, None),
            request_id="1",
            caller="key",
            query={name: (value,) for name, value in query.items()},
            _body=json.dumps(body).encode(),
        )
        before = self.file.read_bytes()
        await self._file.loaded()
        began_s = time.process_time()
        response = await found.endpoint.handler(call)
        took_ms = (time.process_time() - began_s) * 1000
        assert response.status == 200 and self.file.read_bytes() != before
        return took_ms

    def toggle(self, credential_id: str, *, excluded: bool) -> float:
        """Milliseconds that it took."""
        began_s = time.process_time()
        exclude_key(self.file, credential_id, excluded=excluded, before=self.read)
        return (time.process_time() - began_s) * 1000


def calls(number: int) -> Iterator[tuple[str, str, str, Any, dict[str, str]]]:
    """One call of each kind: its name, method, path, body and query."""
    place = 1_003 + 517 * number
    value = {"priority": 5 + number}
    yield "patch", "PATCH", "claude-api-key", {"index": place, "value": value}, {}
    yield "patch_by_key", "PATCH", "claude-api-key", {"match": f"sk-{place + 1:06d}", "value": value}, {}
    index = auth_index(
        "claude-api-key", base_url=f"https://c{(place + 2) % 7}.test", api_key=f"sk-{place + 2:06d}", credential_id=""
    )
    yield "patch_by_index", "PATCH", "claude-api-key", {"auth-index": index, "value": value}, {}
    yield "delete", "DELETE", "claude-api-key", None, {"index": str(place + 5)}
    entries = [{"api-key": f"key-{it}"} for it in range(ENTRIES)]
    entries[place] = {"api-key": f"another-{number}"}
    yield "patch_entry", "PATCH", "openai-compatibility", {"name": "big", "value": {"api-key-entries": entries}}, {}
    yield "add_client", "PATCH", "api-keys", {"old": "", "new": f"new-{number}"}, {}
    yield "delete_client", "DELETE", "api-keys", None, {"value": f"client-{place:06d}"}
    sent = [{"api-key": f"sk-{it:06d}", "base-url": f"https://c{it % 7}.test", "priority": 3} for it in range(KEYS)]
    sent[place]["priority"] = 9 + number
    yield "put", "PUT", "claude-api-key", [*sent, {"api-key": f"sk-new-{number}"}], {}


async def main() -> None:
    """Measure, print."""
    with tempfile.TemporaryDirectory() as directory:
        file = Path(directory) / "config.yaml"
        file.write_text(text())
        site = Site(file)
        records = ConfiguredKeys(HandleMint()).read(site.read.config)
        wanted = next(it for it, record in records.items() if record.provider == "claude")
        took: dict[str, list[float]] = {}
        for number in range(ROUNDS):
            for name, method, path, body, query in calls(number):
                took.setdefault(name, []).append(await site.call(method, path, body, **query))
            took.setdefault("toggle", []).append(site.toggle(wanted, excluded=number % 2 == 0))
    print(json.dumps({f"{name}_ms": round(median(found), 1) for name, found in took.items()}))


if __name__ == "__main__":
    asyncio.run(main())
