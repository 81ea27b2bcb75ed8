"""Describes itself as somebody it is not on the wire."""

from plugin import Plugin


class Broken(Plugin):
    def describe(self):
        self.send({**self.hello(), "capabilities": ["model.route"]})


if __name__ == "__main__":
    Broken().main()
