"""Every process says another version."""

import os

from plugin import Plugin


class Broken(Plugin):
    def hello(self):
        return {**super().hello(), "version": str(os.getpid())}


if __name__ == "__main__":
    Broken().main()
