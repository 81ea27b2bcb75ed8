"""Sends a pong that nobody asked for."""

from plugin import Plugin


class Broken(Plugin):
    def plugin_register(self, call):
        self.send({"kind": "pong", "id": 99})
        super().plugin_register(call)


if __name__ == "__main__":
    Broken().main()
