"""Its answers to one method are no JSON."""

from plugin import Plugin


class Broken(Plugin):
    def usage_handle(self, call):
        self.write(b'{"kind": "result", "id": %d, "ok": tru\n' % call["id"])


if __name__ == "__main__":
    Broken().main()
