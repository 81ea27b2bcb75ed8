"""Greets again after the registration."""

from plugin import Plugin


class Broken(Plugin):
    def plugin_register(self, call):
        super().plugin_register(call)
        self.send(self.hello())


if __name__ == "__main__":
    Broken().main()
