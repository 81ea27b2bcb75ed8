"""Answers calls that nobody made."""

from plugin import Plugin


class Broken(Plugin):
    def model_route(self, call):
        self.answer(call["id"] + 1000)
        super().model_route(call)


if __name__ == "__main__":
    Broken().main()
