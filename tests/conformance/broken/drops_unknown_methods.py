"""Says nothing to methods it does not know."""

from plugin import Plugin


class Broken(Plugin):
    def unknown(self, call):
        """Not mine."""


if __name__ == "__main__":
    Broken().main()
