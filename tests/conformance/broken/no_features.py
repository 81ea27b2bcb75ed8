"""Offers nothing that the full level is about."""

from plugin import Plugin


class Broken(Plugin):
    features = ()
    max_inflight = None


if __name__ == "__main__":
    Broken().main()
