"""Serves whoever finds its socket."""

from plugin import Plugin


class Broken(Plugin):
    def may_enter(self, second, first):
        return True


if __name__ == "__main__":
    Broken().main()
