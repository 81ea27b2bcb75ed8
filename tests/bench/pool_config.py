"""10,000 keys and 2,000 models that stand in a configuration file: from its text to the state that serves requests.

    python tests/bench/pool_config.py

Prints one JSON object. Processor time: neighbours must not count.
"""

import json
import sys
import time
from pathlib import Path
from statistics import median

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from host.config.diff import changes
from host.config.load import parse_config
from tests.bench.pool_driver import Site

KEYS, MODELS, RELOADS = 10_000, 2_000, 7


def text(changed: str = "") -> str:
    """Half of the keys on their own, half of one provider with all models; one of them is `changed`."""
    lines = ["# The pool.", "request-retry: 3", "claude-api-key:"]
    for number in range(KEYS // 2):
        lines += [f"  - api-key: sk-{number:06d}", f"    base-url: https://c{number % 7}.test", "    priority: 3"]
    lines += ["openai-compatibility:", "  - name: big", "    base-url: https://big.test/v1", "    api-key-entries:"]
    lines += [
        f"      - api-key: {changed if changed and not number else f'key-{number}'}" for number in range(KEYS // 2)
    ]
    lines += ["    models:", *(f"      - {{name: model-{number}, alias: m-{number}}}" for number in range(MODELS))]
    lines += ["plugins:", "  enabled: true", "  configs:", "    limits:", "      enabled: false # for now"]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measure, print."""
    began_s = time.process_time()
    before = parse_config(text(), file="config.yaml").config
    site = Site(before)
    site.apply(before)
    start_s = time.process_time() - began_s
    reloads = []
    for number in range(RELOADS):
        edited = text(f"another-{number}")
        began_s = time.process_time()
        wanted = parse_config(edited, file="config.yaml").config
        assert changes(site.config, wanted) == ["openai-compatibility[0].api-key-entries[0].api-key: changed"]
        site.apply(wanted)
        reloads.append(time.process_time() - began_s)
    print(json.dumps({"start_s": start_s, "reload_ms": median(reloads) * 1000}))


if __name__ == "__main__":
    main()
