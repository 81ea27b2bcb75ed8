"""Cannot bear a frame it does not know."""

from plugin import Plugin


class Broken(Plugin):
    def frame(self, frame):
        getattr(self, "on_" + frame["kind"], None)(frame)

    def on_goaway(self, frame):
        """Known."""


if __name__ == "__main__":
    Broken().main()
