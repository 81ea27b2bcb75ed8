"""Dies of a body that its own limit allows."""

from plugin import Plugin


class Broken(Plugin):
    def line(self, line):
        assert len(line) < 100_000, "who sends that much?"
        super().line(line)


if __name__ == "__main__":
    Broken().main()
