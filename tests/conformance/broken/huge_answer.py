"""Answers with more than the host accepts."""

from plugin import Plugin


class Broken(Plugin):
    def plugin_shutdown(self, call):
        self.answer(call["id"], {"note": "x" * (16 * 1024 * 1024)})


if __name__ == "__main__":
    Broken().main()
