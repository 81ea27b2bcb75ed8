"""Speaks only a version that nobody else has."""

from plugin import Plugin


class Broken(Plugin):
    def hello(self):
        return {**super().hello(), "abi": [9]}


if __name__ == "__main__":
    Broken().main()
