"""Cannot bear a cancel for a call it has answered."""

from plugin import Plugin


class Broken(Plugin):
    def on_cancel(self, frame):
        self.end(frame["id"], ok=bool(self.streams.pop(frame["id"])))


if __name__ == "__main__":
    Broken().main()
