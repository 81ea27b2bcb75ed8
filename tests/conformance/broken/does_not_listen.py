"""Answers the hello and never opens the socket it was told to."""

from plugin import Plugin


class Broken(Plugin):
    def move_to_socket(self, first):
        self.send(self.hello())


if __name__ == "__main__":
    Broken().main()
