"""Offers pings and does not answer them."""

from plugin import Plugin


class Broken(Plugin):
    def on_ping(self, frame):
        """Busy with more important things."""


if __name__ == "__main__":
    Broken().main()
