"""A plugin that attacks: each request it is shown names an attack, and is answered with what came of it.

Stands alone, so that it runs confined like any other: `{python} -S plugin.py ID`, with `attacks.py` beside it. Serves
over stdio, or over a socket when the host's hello names one.
"""

import errno
import json
import os
import socket
import struct
import sys

import attacks


class Wire:
    """Frames over a pair of descriptors."""

    def __init__(self, read_fd, write_fd):
        self.read_fd, self.write_fd, self.rest = read_fd, write_fd, b""
        self.calls = 0

    def send(self, **frame):
        data = memoryview(json.dumps(frame, separators=(",", ":")).encode() + b"\n")
        while data:
            data = data[os.write(self.write_fd, data) :]

    def receive(self):
        while b"\n" not in self.rest:
            data = os.read(self.read_fd, 65536)
            if not data:
                sys.exit(0)
            self.rest += data
        line, self.rest = self.rest.split(b"\n", 1)
        return json.loads(line)

    def ask(self, method, params, parent=None):
        """A callback, and its result. Raises Refused."""
        self.calls += 1
        about = {} if parent is None else {"parent": parent}
        self.send(kind="call", id=self.calls, method=method, params=params, **about)
        while True:
            frame = self.receive()
            if frame["kind"] == "result" and frame["id"] == self.calls:
                if frame["ok"]:
                    return frame.get("result")
                raise attacks.Refused(frame["error"].get("code"))


def attack(wire, call_id, params, order):
    """What came of one attack: `got`, which must not be, or `refused`."""
    context = attacks.Context(wire, call_id, params, order.get("args", {}))
    try:
        return {"got": str(getattr(attacks, order["attack"])(context))[:200]}
    except attacks.Refused as refused:
        return {"refused": str(refused)}
    except (AttributeError, AssertionError, TypeError, ValueError, struct.error) as error:
        return {"got": f"a mistake in the attack: {error!r}"}
    except OSError as error:
        return {"refused": errno.errorcode.get(error.errno, str(error.errno))}


def hello(plugin_id):
    # Only who executes a provider may use its credentials. Nothing is executed: each request ends before that.
    executes = ["executor.execute"] if plugin_id == "thief" else []
    return {
        "kind": "hello",
        "abi": [1],
        "schema": 1,
        "plugin": plugin_id,
        "version": "1.0.0",
        "features": ["cancel"],
        "capabilities": ["request.intercept_before", "plugin.register", *executes],
    }


def serve(wire, plugin_id):
    while True:
        frame = wire.receive()
        if frame["kind"] != "call":
            continue
        if frame["method"] == "plugin.register":
            providers = ["openai-compatible-evil"] if plugin_id == "thief" else []
            result = {"providers": providers}
        else:
            order = frame["params"]["body"]["json"]
            mine = order.get("plugin") == plugin_id
            result = (
                {"terminate": {"status": 200, "body": {"json": attack(wire, frame["id"], frame["params"], order)}}}
                if mine
                else {}
            )
        wire.send(kind="result", id=frame["id"], ok=True, result=result)


def main(plugin_id):
    stdio = Wire(0, 1)
    first = stdio.receive()
    if "endpoint" not in first:
        stdio.send(**hello(plugin_id))
        serve(stdio, plugin_id)
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(first["endpoint"])
    listener.listen(4)
    stdio.send(**hello(plugin_id))
    while True:
        connection, _ = listener.accept()
        wire = Wire(connection.fileno(), connection.fileno())
        if wire.receive().get("token") == first["token"]:
            wire.send(**hello(plugin_id))
            serve(wire, plugin_id)


if __name__ == "__main__":
    main(sys.argv[1])
