"""Stops a cancelled stream and says nothing more about it."""

from plugin import Plugin


class Broken(Plugin):
    def on_cancel(self, frame):
        self.streams.pop(frame["id"], None)


if __name__ == "__main__":
    Broken().main()
