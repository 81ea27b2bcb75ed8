"""Lists a method that does not exist."""

from plugin import Plugin


class Broken(Plugin):
    capabilities = (*Plugin.capabilities, "model.invent")


if __name__ == "__main__":
    Broken().main()
