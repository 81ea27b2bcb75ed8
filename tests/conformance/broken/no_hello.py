"""Reads, and never says anything."""

from plugin import Plugin


class Broken(Plugin):
    def serve(self):
        for _ in self.read_from:
            pass


if __name__ == "__main__":
    Broken().main()
