"""Stays when its stdin ends."""

import signal

from plugin import Plugin


class Broken(Plugin):
    def loop(self):
        super().loop()
        while True:
            signal.pause()


if __name__ == "__main__":
    Broken().main()
