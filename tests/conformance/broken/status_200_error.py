"""The status of its errors says that all is well."""

from plugin import Plugin


class Broken(Plugin):
    def usage_handle(self, call):
        self.fail(call["id"], {"message": "slow down", "http_status": 200})


if __name__ == "__main__":
    Broken().main()
