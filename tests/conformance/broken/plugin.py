"""A plugin without an SDK that keeps the whole contract; the scripts beside it each break one rule of it.

Standard library only. One thread reads; what takes long runs in threads of its own.
"""

import json
import os
import socket
import sys
import threading

METHOD_NOT_FOUND = {"message": "no such method", "code": "method_not_found"}
CANCELLED = {"message": "cancelled", "code": "cancelled", "http_status": 499}


class Plugin:
    id = "broken"
    features = ("cancel", "credit", "ping", "goaway")
    capabilities = ("plugin.register", "plugin.shutdown", "model.route", "usage.handle", "executor.execute_stream")
    max_inflight = 8
    max_frame_bytes = 256 * 1024

    def __init__(self):
        self.read_from, self.write_to = sys.stdin.buffer, sys.stdout.buffer
        self.lock = threading.Lock()
        self.streams = {}
        self.callbacks = {}

    def hello(self):
        return {
            "kind": "hello",
            "abi": [1],
            "schema": 1,
            "plugin": self.id,
            "version": "1.0.0",
            "features": self.features,
            "capabilities": self.capabilities,
            "limits": {"max_inflight": self.max_inflight, "max_frame_bytes": self.max_frame_bytes},
        }

    # -- the program

    def main(self):
        if "--describe" in sys.argv:
            self.describe()
        elif sys.stdin.isatty():
            self.by_hand()
        else:
            self.serve()

    def describe(self):
        self.send(self.hello())

    def by_hand(self):
        print("This is a plugin; a gateway starts it.", file=sys.stderr)
        sys.exit(64)

    def serve(self):
        line = self.read_from.readline()
        if not line:
            return
        first = json.loads(line)
        self.has_credit = "credit" in {*first.get("features", ())} & {*self.features}
        if "endpoint" in first:
            self.move_to_socket(first)
        else:
            self.send(self.hello())
        self.loop()

    def loop(self):
        for line in self.read_from:
            self.line(line)

    def line(self, line):
        if len(line) - 1 > self.max_frame_bytes:
            self.oversize(line)
        else:
            self.frame(json.loads(line))

    def oversize(self, line):
        frame = json.loads(line)
        self.fail(frame["id"], {"message": "too large", "code": "plugin_body_too_large", "http_status": 413})

    def move_to_socket(self, first):
        self.control = self.read_from
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(first["endpoint"])
        listener.listen(4)
        self.send(self.hello())
        while True:
            connection, _ = listener.accept()
            wire = connection.makefile("rwb")
            if self.may_enter(json.loads(wire.readline() or b"{}"), first):
                break
            wire.close()
            connection.close()
        self.connection, self.read_from, self.write_to = connection, wire, wire
        self.send(self.hello())

    def may_enter(self, second, first):
        return second.get("token") == first["token"]

    def send(self, frame):
        self.write(json.dumps(frame).encode() + b"\n")

    def write(self, data):
        with self.lock:
            self.write_to.write(data)
            self.write_to.flush()

    # -- frames

    def frame(self, frame):
        handler = getattr(self, "on_" + frame["kind"], None)
        if handler is not None:
            handler(frame)

    def on_call(self, call):
        handler = getattr(self, call["method"].replace(".", "_"), None)
        if handler is None:
            self.unknown(call)
        else:
            handler(call)

    def unknown(self, call):
        self.fail(call["id"], METHOD_NOT_FOUND)

    def on_ping(self, frame):
        self.send({"kind": "pong", "id": frame["id"]})

    def on_cancel(self, frame):
        if self.streams.pop(frame["id"], None) is not None:
            self.end(frame["id"], ok=False, error=CANCELLED)

    def on_credit(self, frame):
        if frame["id"] in self.streams:
            self.streams[frame["id"]][1] += frame["items"]
            self.pump(frame["id"])

    def on_result(self, frame):
        self.callbacks.pop(frame["id"])(frame)

    def answer(self, call_id, result=None, **more):
        self.send({"kind": "result", "id": call_id, "ok": True, "result": result, **more})

    def fail(self, call_id, error):
        self.send({"kind": "result", "id": call_id, "ok": False, "error": error})

    def end(self, call_id, **more):
        self.send({"kind": "end", "id": call_id, **more})

    # -- methods

    def plugin_register(self, call):
        self.answer(call["id"], {})

    def plugin_shutdown(self, call):
        self.answer(call["id"], {})

    def model_route(self, call):
        self.answer(call["id"], None)

    def usage_handle(self, call):
        self.answer(call["id"], None)

    def executor_execute_stream(self, call):
        if not call.get("stream"):
            self.fail(call["id"], {"message": "only as a stream", "http_status": 400})
            return
        self.answer(call["id"], {"status": 200}, stream=True)
        self.streams[call["id"]] = [100, 32 if self.has_credit else 100]
        self.pump(call["id"])

    def pump(self, call_id):
        """Send what the credit allows of the items that remain."""
        stream = self.streams[call_id]
        while stream[0] and stream[1] > 0:
            stream[0] -= 1
            stream[1] -= 1
            self.send({"kind": "item", "id": call_id, "body": {"json": {"left": stream[0]}}})
        if not stream[0]:
            del self.streams[call_id]
            self.end(call_id, ok=True)


if __name__ == "__main__":
    Plugin().main()
    os._exit(0)
