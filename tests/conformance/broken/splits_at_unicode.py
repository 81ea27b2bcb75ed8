"""Splits its input where Unicode says that a line ends."""

import json

from plugin import Plugin


class Broken(Plugin):
    def loop(self):
        for line in self.read_from:
            for part in line.decode().splitlines():
                self.frame(json.loads(part))


if __name__ == "__main__":
    Broken().main()
