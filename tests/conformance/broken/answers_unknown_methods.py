"""Says yes to methods it does not know."""

from plugin import Plugin


class Broken(Plugin):
    def unknown(self, call):
        self.answer(call["id"], {})


if __name__ == "__main__":
    Broken().main()
