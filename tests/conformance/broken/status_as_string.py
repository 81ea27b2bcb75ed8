"""The status of its errors is a string."""

from plugin import Plugin


class Broken(Plugin):
    def usage_handle(self, call):
        self.fail(call["id"], {"message": "slow down", "http_status": "429"})


if __name__ == "__main__":
    Broken().main()
