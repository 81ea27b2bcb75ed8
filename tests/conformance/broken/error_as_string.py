"""Its errors are only a text."""

from plugin import Plugin


class Broken(Plugin):
    def usage_handle(self, call):
        self.fail(call["id"], "slow down")


if __name__ == "__main__":
    Broken().main()
