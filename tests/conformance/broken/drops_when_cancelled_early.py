"""Loses a call that is cancelled before it was begun."""

import threading

from plugin import Plugin


class Broken(Plugin):
    def model_route(self, call):
        self.streams[call["id"]] = [0, 0]
        threading.Timer(0.02, self.later, [call]).start()

    def later(self, call):
        if self.streams.pop(call["id"], None) is not None:
            self.answer(call["id"])

    def on_cancel(self, frame):
        if self.streams.get(frame["id"]) == [0, 0]:
            del self.streams[frame["id"]]
        else:
            super().on_cancel(frame)


if __name__ == "__main__":
    Broken().main()
