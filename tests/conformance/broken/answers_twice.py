"""Answers every call of one method twice."""

from plugin import Plugin


class Broken(Plugin):
    def model_route(self, call):
        super().model_route(call)
        super().model_route(call)


if __name__ == "__main__":
    Broken().main()
