"""Gives all its callbacks the same id."""

from plugin import Plugin


class Broken(Plugin):
    waiting: list[int] = []  # noqa: RUF012

    def model_route(self, call):
        self.waiting.append(call["id"])
        params = {"key": "k"}
        self.send({"kind": "call", "id": 1, "method": "host.kv.get", "params": params, "parent": call["id"]})

    def on_result(self, frame):
        self.answer(self.waiting.pop(0))


if __name__ == "__main__":
    Broken().main()
