"""Works inside the reader, so that pings wait for the work."""

import time

from plugin import Plugin


class Broken(Plugin):
    capabilities = ("plugin.register", "model.route", "executor.execute")
    max_inflight = 1

    def executor_execute(self, call):
        time.sleep(0.3)
        self.answer(call["id"], {"body": {"json": {}}})


if __name__ == "__main__":
    Broken().main()
