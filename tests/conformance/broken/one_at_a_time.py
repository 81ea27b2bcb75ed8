"""Reads nothing while a stream of its own waits for credit."""

import json

from plugin import Plugin


class Broken(Plugin):
    def executor_execute_stream(self, call):
        super().executor_execute_stream(call)
        while call["id"] in self.streams:
            frame = json.loads(self.read_from.readline() or b"{}")
            if frame.get("kind") in ("credit", "cancel", "ping"):
                self.frame(frame)


if __name__ == "__main__":
    Broken().main()
