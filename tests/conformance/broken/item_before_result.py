"""Sends the first item before it opens the stream."""

from plugin import Plugin


class Broken(Plugin):
    def executor_execute_stream(self, call):
        if call.get("stream"):
            self.send({"kind": "item", "id": call["id"], "body": {"json": {}}})
        super().executor_execute_stream(call)


if __name__ == "__main__":
    Broken().main()
