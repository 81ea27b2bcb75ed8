"""Remembers one more item when its stream is over."""

from plugin import Plugin


class Broken(Plugin):
    def end(self, call_id, **more):
        super().end(call_id, **more)
        self.send({"kind": "item", "id": call_id, "body": {"json": {"left": -1}}})


if __name__ == "__main__":
    Broken().main()
