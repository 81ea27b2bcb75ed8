"""Its errors say nothing."""

from plugin import Plugin


class Broken(Plugin):
    def usage_handle(self, call):
        self.fail(call["id"], {"code": "slow_down", "http_status": 429})


if __name__ == "__main__":
    Broken().main()
