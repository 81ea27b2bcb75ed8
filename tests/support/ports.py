"""A port that stays free for whoever is told its number: the system gives it to nobody else meanwhile."""

import socket
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def reserved_port() -> Iterator[int]:
    """A loopback port that can be listened on with SO_REUSEADDR, as all servers here do; until then it refuses.

    A number that was only looked up may be given to the next connection of any process, and is then in use.
    """
    with socket.socket() as held:
        held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        held.bind(("127.0.0.1", 0))
        port: int = held.getsockname()[1]
        yield port
