"""Dies of a frame above its limit."""

from plugin import Plugin


class Broken(Plugin):
    def oversize(self, line):
        raise MemoryError("too large")


if __name__ == "__main__":
    Broken().main()
