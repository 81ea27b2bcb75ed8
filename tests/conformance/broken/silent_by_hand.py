"""Waits in silence on a terminal."""

from plugin import Plugin


class Broken(Plugin):
    def by_hand(self):
        self.serve()


if __name__ == "__main__":
    Broken().main()
