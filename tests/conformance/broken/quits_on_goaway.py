"""Leaves at once when the host says goaway."""

import os

from plugin import Plugin


class Broken(Plugin):
    def on_goaway(self, frame):
        os._exit(0)


if __name__ == "__main__":
    Broken().main()
