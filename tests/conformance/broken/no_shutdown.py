"""Lists plugin.shutdown and does not answer it."""

from plugin import Plugin


class Broken(Plugin):
    def plugin_shutdown(self, call):
        """Later, perhaps."""


if __name__ == "__main__":
    Broken().main()
