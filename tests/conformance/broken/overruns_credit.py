"""Sends without looking at the credit."""

from plugin import Plugin


class Broken(Plugin):
    def pump(self, call_id):
        self.streams[call_id][1] = 1000
        super().pump(call_id)


if __name__ == "__main__":
    Broken().main()
