"""Asks for eight calls at once and does one after the other."""

import threading
import time

from plugin import Plugin


class Broken(Plugin):
    capabilities = ("plugin.register", "model.route", "executor.execute")

    def __init__(self):
        super().__init__()
        self.working = threading.Lock()

    def executor_execute(self, call):
        threading.Thread(target=self.work, args=[call], daemon=True).start()

    def work(self, call):
        with self.working:
            time.sleep(0.2)
            self.answer(call["id"], {"body": {"json": {}}})


if __name__ == "__main__":
    Broken().main()
