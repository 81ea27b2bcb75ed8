"""Its hello names another plugin."""

from plugin import Plugin


class Broken(Plugin):
    id = "somebody-else"


if __name__ == "__main__":
    Broken().main()
