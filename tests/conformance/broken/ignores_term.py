"""Does not want to hear of TERM."""

import signal

from plugin import Plugin


class Broken(Plugin):
    def serve(self):
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        super().serve()


if __name__ == "__main__":
    Broken().main()
