"""Its routing decision has a number for a word."""

from plugin import Plugin


class Broken(Plugin):
    def model_route(self, call):
        self.answer(call["id"], {"target_kind": 5})


if __name__ == "__main__":
    Broken().main()
