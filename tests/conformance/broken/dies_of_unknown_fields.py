"""Cannot bear a field it does not know."""

import sys

from plugin import Plugin

KNOWN = {"kind", "id", "method", "params", "stream", "timeout_ms"}


class Broken(Plugin):
    def on_call(self, call):
        if set(call) - KNOWN:
            sys.exit(f"unknown fields: {set(call) - KNOWN}")
        super().on_call(call)


if __name__ == "__main__":
    Broken().main()
