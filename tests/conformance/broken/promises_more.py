"""Registers a capability that its hello lacks."""

from plugin import Plugin


class Broken(Plugin):
    def plugin_register(self, call):
        self.answer(call["id"], {"capabilities": ["auth.refresh"]})


if __name__ == "__main__":
    Broken().main()
