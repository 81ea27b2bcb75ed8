"""10,000 keys and 2,000 models that stand in a configuration file: from its text to the state that serves requests.

    python tests/bench/pool_config.py

Prints one JSON object. Processor time: neighbours must not count.
"""

import gc
import json
import sys
import time
from pathlib import Path
from statistics import median

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from host.config.diff import changes
from host.config.load import LoadedConfig, parse_config
from tests.bench.pool_driver import Site

KEYS, MODELS, RELOADS = 10_000, 2_000, 7


def text(changed: str = "", *, added: int = 0) -> str:
    """Half of the keys on their own, half of one provider with all models; one of them is `changed`, and so many are
    `added` in front of all others."""
    lines = ["# The pool.", "request-retry: 3", "claude-api-key:"]
    lines += [f"  - api-key: sk-added-{number}" for number in reversed(range(added))]
    for number in range(KEYS // 2):
        lines += [f"  - api-key: sk-{number:06d}", f"    base-url: https://c{number % 7}.test", "    priority: 3"]
    lines += ["openai-compatibility:", "  - name: big", "    base-url: https://big.test/v1", "    api-key-entries:"]
    lines += [
        f"      - api-key: {changed if changed and not number else f'key-{number}'}" for number in range(KEYS // 2)
    ]
    lines += ["    models:", *(f"      - {{name: model-{number}, alias: m-{number}}}" for number in range(MODELS))]
    lines += ["plugins:", "  enabled: true", "  configs:", "    limits:", "      enabled: false # for now"]
    return "\n".join(lines) + "\n"


def reload_ms(site: Site, before: LoadedConfig, edited: str, expected: str) -> tuple[LoadedConfig, float]:
    """Read and apply the edited text, as the proxy does it."""
    began_s = time.process_time()
    loaded = parse_config(edited, file="config.yaml", before=before)
    found = changes(site.config, loaded.config)
    site.apply(loaded.config)
    took_ms = (time.process_time() - began_s) * 1000
    assert found == [expected], found
    return loaded, took_ms


def main() -> None:
    """Measure, print."""
    began_s = time.process_time()
    loaded = parse_config(text(), file="config.yaml")
    site = Site(loaded.config)
    site.apply(loaded.config)
    start_s = time.process_time() - began_s
    # As `jackfield serve` does when it has started.
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 50)
    changed, added = [], []
    for number in range(RELOADS):
        what = "openai-compatibility[0].api-key-entries[0].api-key: changed"
        loaded, took_ms = reload_ms(site, loaded, text(f"another-{number}"), what)
        changed.append(took_ms)
    edited = f"another-{RELOADS - 1}"
    for number in range(RELOADS):
        keys = KEYS // 2 + number
        what = f"claude-api-key: {keys} -> {keys + 1} entries"
        loaded, took_ms = reload_ms(site, loaded, text(edited, added=number + 1), what)
        added.append(took_ms)
    print(json.dumps({"start_s": start_s, "reload_ms": median(changed), "reload_added_ms": median(added)}))


if __name__ == "__main__":
    main()
