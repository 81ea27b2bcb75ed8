"""Prints a progress message where frames belong."""

from plugin import Plugin


class Broken(Plugin):
    def model_route(self, call):
        self.write(b"routing...\n")
        super().model_route(call)


if __name__ == "__main__":
    Broken().main()
