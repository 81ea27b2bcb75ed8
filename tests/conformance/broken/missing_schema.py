"""Its hello lacks a required member."""

from plugin import Plugin


class Broken(Plugin):
    def hello(self):
        return {name: value for name, value in super().hello().items() if name != "schema"}


if __name__ == "__main__":
    Broken().main()
