"""Asks for an input that does not exist."""

from plugin import Plugin


class Broken(Plugin):
    def hello(self):
        return {**super().hello(), "inputs": {"model.route": ["everything"]}}


if __name__ == "__main__":
    Broken().main()
