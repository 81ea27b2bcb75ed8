"""A plugin without an SDK that can be told to misbehave. Run as `python -S fault_plugin.py MODE [NAME=VALUE…]`.

MODE is what it does wrong while it starts (`healthy`: nothing). Once it serves, the `requested_model` of a
`model.route` call, or the `model` of an executor call, is a command: the first word names a method `do_…` below.
"""

import fcntl
import json
import os
import select
import signal
import socket
import subprocess
import sys
import threading
import time

from fault_floods import Floods

FEATURES = ["cancel", "credit", "ping", "goaway", "callback_streams"]
CAPABILITIES = ["model.route", "executor.execute", "executor.execute_stream", "plugin.register"]
HOLD_LIFE = (
    "import os, signal, socket, sys\n"
    "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
    "life = socket.socket(socket.AF_UNIX)\n"
    "if len(sys.argv) == 1:\n"
    "    signal.pause()\n"
    "life.connect(sys.argv[1])\n"
    "life.sendall(b'grandchild\\n')\n"
    "life.recv(1)\n"
)


class Wire:
    """Frames over a pair of descriptors; lines are cut here because a blocking readline would hide the other one."""

    def __init__(self, read_fd, write_fd):
        self.read_fd, self.write_fd, self.rest = read_fd, write_fd, b""
        self.whole_lines = threading.Lock()

    def send(self, **frame):
        self.write(json.dumps(frame, separators=(",", ":")).encode() + b"\n")

    def write(self, data):
        view = memoryview(data)
        with self.whole_lines:
            while view:
                view = view[os.write(self.write_fd, view) :]

    def lines(self):
        data = os.read(self.read_fd, 65536)
        if not data:
            return None
        *lines, self.rest = (self.rest + data).split(b"\n")
        return lines

    def read_line(self):
        """One line, blocking; what follows stays for later."""
        while b"\n" not in self.rest:
            data = os.read(self.read_fd, 65536)
            if not data:
                sys.exit(0)
            self.rest += data
        line, self.rest = self.rest.split(b"\n", 1)
        return line


class FaultPlugin(Floods):
    def __init__(self, mode, options):
        self.mode, self.options = mode, options
        self.stdio = self.wire = Wire(0, 1)
        self.held, self.callbacks, self.streams, self.credits = [], {}, {}, {}
        self.next_id = 1
        self.life = self.connect_life()
        self.served = 0

    def connect_life(self):
        path = os.environ.get("TEST_LIFE")
        if path is None:
            return None
        life = socket.socket(socket.AF_UNIX)
        life.connect(path)
        if self.mode != "listen":  # which says it once it listens
            life.sendall(f"{self.mode}\n".encode())
        return life

    # -- start

    def hello(self):
        minimal = self.mode == "minimal"
        hello = {
            "kind": "hello",
            "abi": [1],
            "schema": 1,
            "plugin": self.options.get("id", "faulty"),
            "version": "1.0.0",
            "features": [] if minimal else self.options.get("features", ",".join(FEATURES)).split(","),
            "capabilities": self.options.get("capabilities", ",".join(CAPABILITIES)).split(","),
        }
        if minimal:
            hello["capabilities"] = ["model.route"]
        if "max_inflight" in self.options:
            hello["limits"] = {"max_inflight": int(self.options["max_inflight"])}
        match self.mode:
            case "wrong-id":
                hello["plugin"] = "somebody-else"
            case "high-schema":
                hello["schema"] = 99
            case "no-common-abi":
                hello["abi"] = [7]
        return hello

    def run(self):
        getattr(self, "start_" + self.mode.replace("-", "_"), lambda: None)()
        if self.mode == "listen":
            self.listen(self.options["path"])
        first = json.loads(self.stdio.read_line())
        hello = self.hello()
        if first.get("endpoint"):
            self.serve_socket(first, hello)
        else:
            self.stdio.send(**hello)
        if self.mode == "hello-twice":
            self.wire.send(**hello)
        self.loop()

    def listen(self, path):
        """For a debugger: one host after the other, until somebody kills us."""
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(path)
        listener.listen(4)
        self.life.sendall(b"listening\n")
        while True:
            connection, _ = listener.accept()
            self.wire = Wire(connection.fileno(), connection.fileno())
            self.wire.read_line()
            self.wire.send(**self.hello())
            try:
                while (lines := self.wire.lines()) is not None:
                    for line in lines:
                        self.frame(json.loads(line))
            except ConnectionError:
                pass
            connection.close()

    def serve_socket(self, first, hello):
        if self.mode == "does-not-listen":
            self.stdio.send(**hello)
            return
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(first["endpoint"])
        listener.listen(4)
        self.stdio.send(**hello)
        while True:
            connection, _ = listener.accept()
            wire = Wire(connection.fileno(), connection.fileno())
            second = json.loads(wire.read_line())
            if second.get("token") == first["token"]:
                break
            connection.close()
        self.connection, self.listener, self.wire = connection, listener, wire
        wire.send(**hello)

    def start_no_hello(self):
        while os.read(0, 65536):
            pass
        sys.exit(0)

    def start_exit_0(self):
        os._exit(0)

    def start_exit_3(self):
        os.write(2, b"ERROR: no licence found\n")
        os._exit(3)

    def start_one_stray_line(self):
        self.stdio.write(b"welcome to my plugin\n")

    def start_three_stray_lines(self):
        self.stdio.write(b"one\ntwo\nthree\n")

    def start_ignores_everything(self):
        signal.signal(signal.SIGTERM, signal.SIG_IGN)

    def start_ignores_eof(self):
        """Only the end of stdin is ignored."""

    def start_grandchild(self):
        self.do_grandchild(None, None)

    def start_floods_stderr(self):
        os.write(2, b"a line of noise that nobody wants to read\n" * 200_000)
        os.write(2, b"last words of the flood\n")

    def start_crash_once(self):
        if not os.path.exists("crashed"):
            open("crashed", "w").close()
            os._exit(5)

    # -- serve

    def loop(self):
        wires = {self.wire.read_fd: self.wire, 0: self.stdio}
        while True:
            readable, _, _ = select.select(list(wires), [], [])
            for fd in readable:
                lines = wires[fd].lines()
                if lines is None:
                    self.ended(fd, wires)
                    continue
                for line in lines:
                    if line.strip():
                        self.frame(json.loads(line))

    def ended(self, fd, wires):
        if self.mode in ("ignores-everything", "ignores-eof"):
            del wires[fd]
            if not wires:
                while True:
                    time.sleep(3600)
        else:
            sys.exit(0)

    def frame(self, frame):
        kind = frame["kind"]
        if kind == "call":
            self.call(frame)
        elif kind == "ping":
            self.wire.send(kind="pong", id=frame["id"], loop_lag_ms=0)
        elif kind == "cancel":
            self.cancel(frame)
        elif kind == "credit":
            self.credit(frame)
        elif kind == "goaway" and self.mode == "finishes-on-goaway":
            self.finish_everything()
        elif kind == "result" and frame["id"] in self.callbacks:
            self.callbacks.pop(frame["id"])(frame)

    def finish_everything(self):
        for call_id in self.held:
            self.say(call_id, "late")
        for stream_id in self.streams:
            self.wire.send(kind="end", id=stream_id, ok=True)
        self.held, self.streams = [], {}

    def call(self, frame):
        params = frame.get("params") or {}
        method = frame["method"]
        if method == "plugin.register":
            if self.mode == "register-error":
                return self.fail(frame["id"], message="threshold is no number", code="bad_config", http_status=400)
            return self.answer(
                frame["id"], {"capabilities": ["auth.refresh"]} if self.mode == "extra-capability" else {}
            )
        if method == "plugin.reconfigure":
            if params.get("config", {}).get("broken"):
                return self.fail(frame["id"], message="cannot use this", http_status=400)
            return self.answer(frame["id"], {"providers": ["reconfigured"]})
        if method == "plugin.shutdown":
            self.stdio_note("shutdown")
            return self.answer(frame["id"], {})
        command, _, argument = (params.get("requested_model") or params.get("model") or "echo").partition(" ")
        self.served += 1
        return getattr(self, "do_" + command.replace("-", "_"))(frame["id"], argument)

    def stdio_note(self, text):
        os.write(2, f"INFO: {text}\n".encode())

    def answer(self, call_id, result, **more):
        self.wire.send(kind="result", id=call_id, ok=True, result=result, **more)

    def fail(self, call_id, **error):
        self.wire.send(kind="result", id=call_id, ok=False, error=error)

    def say(self, call_id, text):
        self.answer(call_id, {"reason": text})

    def cancel(self, frame):
        call_id = frame["id"]
        if call_id in self.held and self.mode != "never-closes":
            self.held.remove(call_id)
            self.fail(call_id, message="cancelled", code="cancelled", http_status=499)
        elif call_id in self.streams:
            del self.streams[call_id]
            self.stdio_note(f"stream cancelled: {frame.get('reason', 'client_gone')}")
            error = {"message": "cancelled", "code": "cancelled", "http_status": 499}
            self.wire.send(kind="end", id=call_id, ok=False, error=error, usage={"output_tokens": 3})

    # -- commands

    def do_echo(self, call_id, argument):
        self.say(call_id, argument)

    def do_env(self, call_id, argument):
        self.say(call_id, json.dumps(dict(os.environ)))

    def do_pid(self, call_id, argument):
        self.say(call_id, str(os.getpid()))

    def do_try(self, call_id, argument):
        try:
            self.say(call_id, str(eval(argument)))
        except OSError as error:
            self.say(call_id, f"{type(error).__name__} {error.errno}")

    def do_sandbox(self, call_id, argument):
        import resource

        with open("/proc/self/status", encoding="ascii") as status:
            flags = dict(line.rstrip("\n").split(":\t", 1) for line in status if ":\t" in line)
        facts = {
            "no_new_privs": flags["NoNewPrivs"],
            "sigpipe_ignored": bool(int(flags["SigIgn"], 16) >> (signal.SIGPIPE - 1) & 1),
            "data": resource.getrlimit(resource.RLIMIT_DATA)[0],
            "nofile": resource.getrlimit(resource.RLIMIT_NOFILE)[0],
            "core": resource.getrlimit(resource.RLIMIT_CORE)[0],
            "session": os.getsid(0) == os.getpid(),
            "fds": [fd for fd in range(64) if os.path.exists(f"/proc/self/fd/{fd}")],
        }
        self.say(call_id, json.dumps(facts))

    def do_error(self, call_id, argument):
        self.fail(call_id, message="no quota", code="rate_limited", http_status=429, retry_after_ms=1500, scope="model")

    def do_hang(self, call_id, argument):
        """Never answers by itself; says that it has the call."""
        self.held.append(call_id)
        self.wire.send(kind="log", level="info", event="held", parent=call_id)

    def do_release(self, call_id, argument):
        held, self.held = self.held, []
        for held_id in held:
            self.say(held_id, "late")
        self.say(call_id, str(len(held)))

    def do_exit(self, call_id, argument):
        os.write(2, b'Traceback (most recent call last):\n  File "x.py", line 1\nRuntimeError: it broke\n')
        os._exit(int(argument or 1))

    def do_kill(self, call_id, argument):
        os.kill(os.getpid(), signal.SIGKILL)

    def do_print(self, call_id, argument):
        self.wire.write(argument.encode() + b"\n")
        self.say(call_id, "printed")

    def do_print_stdout(self, call_id, argument):
        self.stdio.write(argument.encode() + b"\n")
        self.say(call_id, "printed")

    def do_stderr(self, call_id, argument):
        os.write(2, argument.encode() + b"\n")
        self.say(call_id, "written")

    def do_oversize(self, call_id, argument):
        self.say(call_id, "x" * (16 * 1024 * 1024 + 100))

    def do_broken_json(self, call_id, argument):
        self.wire.write(b'{"kind":"result","id":%d,"ok":tru\n' % call_id)

    def do_unknown_id(self, call_id, argument):
        self.wire.send(kind="result", id=call_id + 1000, ok=True, result={})

    def do_sleep_forever(self, call_id, argument):
        while True:
            time.sleep(3600)

    def do_sleep(self, call_id, argument):
        """Busy and deaf for some seconds."""
        time.sleep(float(argument))
        self.say(call_id, "slept")

    def do_stop_reading(self, call_id, argument):
        """Says it, then never reads again."""
        self.say(call_id, "bye")
        while True:
            time.sleep(3600)

    def do_close_stdout(self, call_id, argument):
        os.close(1)

    def do_wait_for_lock(self, call_id, argument):
        """Answers when nobody holds the lock on this file any more, and is deaf until then."""
        with open(argument) as file:
            fcntl.flock(file, fcntl.LOCK_SH)
        self.say(call_id, "locked")

    def do_close_stdin(self, call_id, argument):
        """Takes nothing more, without a word, and lives on."""
        os.close(0)
        while True:
            time.sleep(3600)

    def do_goaway(self, call_id, argument):
        self.wire.send(kind="goaway", reason=argument or "memory grew", drain_ms=1000)
        self.say(call_id, "going")

    def do_log(self, call_id, argument):
        self.wire.send(kind="log", level="warning", event=argument, fields={"n": 1}, parent=call_id)
        self.say(call_id, "logged")

    def do_grandchild(self, call_id, argument):
        """A descendant that keeps our pipes open and ignores TERM."""
        subprocess.Popen([sys.executable, "-S", "-c", HOLD_LIFE, *filter(None, [os.environ.get("TEST_LIFE")])])
        if call_id is not None:
            self.say(call_id, "spawned")

    def do_callback(self, call_id, argument):
        """Ask the host; its answer is ours."""
        method, _, key = argument.partition(" ")

        def answered(frame):
            if frame["ok"]:
                self.say(call_id, json.dumps(frame.get("result")))
            else:
                self.wire.send(kind="result", id=call_id, ok=False, error=frame["error"])

        self.ask(answered, method=method, params={"key": key or "k"}, parent=call_id)

    def do_callback_then_answer(self, call_id, argument):
        """Answer at once; the callback of the closed call is asked after it, its error code goes to stderr."""
        self.say(call_id, "answered")
        self.ask(self.note_callback, method="host.kv.get", params={"key": argument}, parent=call_id)

    def do_callback_during(self, call_id, argument):
        """Ask and hold the call; the callback's error code goes to stderr."""
        self.held.append(call_id)
        self.ask(self.note_callback, method="host.kv.get", params={"key": argument}, parent=call_id)

    def do_callback_unparented(self, call_id, argument):
        self.ask(self.note_callback, method="host.kv.get", params={"key": argument})
        self.say(call_id, "asked")

    def note_callback(self, frame):
        self.stdio_note("callback: " + (frame.get("error") or {"code": "ok"})["code"])

    def ask(self, then, **call):
        callback_id, self.next_id = self.next_id, self.next_id + 1
        self.callbacks[callback_id] = then
        self.wire.send(kind="call", id=callback_id, **call)

    def do_callback_stream(self, call_id, argument):
        """Open a stream at the host and answer with the texts of its items."""
        texts = []
        callback_id, self.next_id = self.next_id, self.next_id + 1

        def opened(frame):
            if not frame["ok"]:
                self.wire.send(kind="result", id=call_id, ok=False, error=frame["error"])

        self.callbacks[callback_id] = opened
        previous = self.frame

        def frame(received):
            if received["kind"] == "item" and received["id"] == callback_id:
                texts.append(received["raw"]["text"])
                self.wire.send(kind="credit", id=callback_id, items=1, bytes=100)
            elif received["kind"] == "end" and received["id"] == callback_id:
                self.say(call_id, ",".join(texts) + ("" if received["ok"] else " " + received["error"]["code"]))
            else:
                previous(received)

        self.frame = frame
        params = {"method": "GET", "url": "http://127.0.0.1/"}
        self.wire.send(
            kind="call", id=callback_id, method="host.http.do_stream", params=params, parent=call_id, stream=True
        )

    def do_stream(self, call_id, argument):
        count = int(argument)
        self.answer(call_id, {"status": 200}, stream=True)
        for number in range(count):
            self.wire.send(kind="item", id=call_id, body={"json": {"n": number}})
        self.wire.send(kind="end", id=call_id, ok=True, usage={"output_tokens": count})

    def do_stream_hold(self, call_id, argument):
        self.streams[call_id] = True
        self.answer(call_id, {"status": 200}, stream=True)
        self.wire.send(kind="item", id=call_id, body={"json": {"n": 0}})

    def do_stream_finish(self, call_id, argument):
        for stream_id in self.streams:
            self.wire.send(kind="end", id=stream_id, ok=True)
        self.streams.clear()
        self.say(call_id, "finished")

    def do_stream_exit(self, call_id, argument):
        self.answer(call_id, {"status": 200}, stream=True)
        self.wire.send(kind="item", id=call_id, body={"json": {"n": 0}})
        os._exit(9)


if __name__ == "__main__":
    options = dict(argument.split("=", 1) for argument in sys.argv[2:])
    FaultPlugin(sys.argv[1], options).run()
