"""Does not know --describe and waits for a host."""

from plugin import Plugin


class Broken(Plugin):
    def describe(self):
        self.serve()


if __name__ == "__main__":
    Broken().main()
