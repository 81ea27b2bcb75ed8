// The wire: one JSON object per line, in on stdin, out on stdout.

// Whatever a library prints belongs on stderr, which the gateway keeps as this plugin's log.
console.log = console.info = console.debug = console.error;

const LINE_FEED = 10;
// Until the gateway's hello says otherwise.
let maxFrameBytes = 16 << 20;

/** Sends a frame; one that is too large for the gateway becomes an error of its call. */
export function send(frame) {
  let line = JSON.stringify(frame);
  if (frame.kind === "result" && Buffer.byteLength(line) > maxFrameBytes) {
    const error = { message: "the answer is larger than the gateway takes", code: "plugin_body_too_large", http_status: 413 };
    line = JSON.stringify({ kind: "result", id: frame.id, ok: false, error });
  }
  process.stdout.write(line + "\n");
}

/** Calls `receive` with every frame, until stdin ends: then the process does. */
export function listen(receive) {
  let parts = [];
  process.stdin.on("data", (data) => {
    // By hand: frames are large and come in many pieces, and nothing but LF ends a line.
    let from = 0;
    for (let at = data.indexOf(LINE_FEED); at >= 0; at = data.indexOf(LINE_FEED, from)) {
      parts.push(data.subarray(from, at));
      const frame = JSON.parse(parts.length === 1 ? parts[0].toString() : Buffer.concat(parts).toString());
      parts = [];
      from = at + 1;
      if (frame.kind === "hello") maxFrameBytes = frame.limits?.max_frame_bytes ?? maxFrameBytes;
      receive(frame);
    }
    if (from < data.length) parts.push(data.subarray(from));
  });
  process.stdin.on("end", () => process.exit(0));
  process.stdout.on("error", () => process.exit(0));
}
