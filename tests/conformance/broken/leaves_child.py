"""Leaves a helper of its own behind."""

import subprocess
import sys

from plugin import Plugin


class Broken(Plugin):
    def serve(self):
        helper = [sys.executable, "-S", "-c", "import signal; signal.pause()"]
        subprocess.Popen(helper, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        super().serve()


if __name__ == "__main__":
    Broken().main()
