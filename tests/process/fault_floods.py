"""Commands of the fault plugin that send, hold or print too much. Floods run in a thread: pings are still answered."""

import os
import threading
import time

GARBAGE = (
    b"\x00\xff\xfe garbage " + bytes(range(128, 256)),
    b'{"kind":"result","id":1,"ok":tru',
    b'{"kind":"nonsense","id":7}',
    b"[1,2,3]",
    b"Segmentation fault (core dumped)",
    b'{"kind":"log","level":7}',
    b"x" * 5000,
)


class Floods:
    """Mixed into the plugin, which has `wire`, `held`, `say` and `answer`."""

    def do_flood(self, call_id, argument):
        line = b"noise noise noise noise noise noise noise noise\n" * 1000
        for _ in range(int(argument) * 1_000_000 // len(line)):
            os.write(2, line)
        self.say(call_id, "flooded")

    def do_map_shared(self, call_id, argument):
        """Hold that many megabytes of memory that no RLIMIT_DATA counts."""
        import mmap

        memory = mmap.mmap(-1, int(argument) << 20)
        for at in range(0, len(memory), 4096):
            memory[at] = 1
        self.held.append(memory)

    def do_chatter(self, call_id, argument):
        """Logs without reading for some seconds."""
        until_s = time.monotonic() + float(argument)
        while time.monotonic() < until_s:
            self.wire.send(kind="log", level="debug", event="chatter")
            time.sleep(0.01)
        self.say(call_id, "done")

    def do_memory_bomb(self, call_id, argument):
        """Take memory until there is none."""
        while True:
            self.held.append(bytearray(16 << 20))

    def do_garbage(self, call_id, argument):
        """Lines that are no frames, as fast as they are read, for some seconds; then a frame that ends the session."""
        self.say(call_id, "as you like")

        def flood():
            block = b"\n".join(GARBAGE) + b"\n"
            until_s = time.monotonic() + float(argument)
            while time.monotonic() < until_s:
                self.wire.write(block)
            self.do_unknown_id(call_id, None)

        threading.Thread(target=flood, daemon=True).start()

    def do_logs(self, call_id, argument):
        """So many log frames per second, for so many seconds."""
        rate, seconds = map(float, argument.split())
        self.say(call_id, "as you like")
        threading.Thread(target=paced, args=(rate, seconds, self.send_log), daemon=True).start()

    def send_log(self, number):
        self.wire.send(kind="log", level="warning", event="one of very many", fields={"number": number})

    def do_events(self, call_id, argument):
        """A stream of so many events per second, for so many seconds, within what the host gives credit for."""
        rate, seconds = map(float, argument.split())
        self.streams[call_id] = True
        self.credits[call_id] = threading.Semaphore(32)
        self.answer(call_id, {"status": 200, "headers": {"content-type": ["text/event-stream"]}}, stream=True)

        def send(number):
            self.credits[call_id].acquire()
            self.wire.send(
                kind="item",
                id=call_id,
                body={"json": {"choices": [{"delta": {"content": f"{number} {time.monotonic_ns()}"}}]}},
            )

        def flood():
            paced(rate, seconds, send)
            if self.streams.pop(call_id, None):
                self.wire.send(kind="end", id=call_id, ok=True)

        threading.Thread(target=flood, daemon=True).start()

    def credit(self, frame):
        if frame["id"] in self.credits:
            self.credits[frame["id"]].release(frame["items"] or 1)


def paced(rate, seconds, send):
    """Call `send` that often, in bursts of what is due every few milliseconds."""
    began_s, sent = time.monotonic(), 0
    while (passed_s := time.monotonic() - began_s) < seconds:
        due = int(passed_s * rate)
        while sent < due:
            send(sent)
            sent += 1
        time.sleep(0.005)
