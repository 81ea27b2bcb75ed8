// Speaks the Jackfield plugin protocol, ABI 1: one JSON object per line, over stdin and stdout.
//
// It needs nothing but Node (18 or newer) and is part of your plugin: read it, change it. The names of methods and
// fields are those of the protocol's page, proto/README.md of Jackfield.
import { chmodSync, rmSync } from "node:fs";
import { createServer } from "node:net";

const MAX_FRAME = 16 << 20; // bytes of a line, until a hello says otherwise
const HEAD_BYTES = 4096; // the id of a line that is too long stands within its first bytes
const WINDOW = { items: 32, bytes: 1 << 20 }; // credit of a new stream
const FEATURES = ["cancel", "credit", "ping", "goaway", "callback_streams"];
const REGISTRATION = ["plugin.register", "plugin.reconfigure"];
const EXIT_USAGE = 64;

/** An error that reaches the client with its status. `more` are further members of the protocol's error object. */
export class PluginError extends Error {
  constructor(status, code, message, more = {}) {
    super(message);
    this.fields = { message, code, http_status: status, ...more };
  }
}

/** The JSON of a body in a request, in whichever form it came; undefined when there is none. */
export function bodyOf(body) {
  if (body === undefined || body === null) return undefined;
  if ("json" in body) return body.json;
  return JSON.parse("text" in body ? body.text : Buffer.from(body.base64, "base64").toString());
}

/** A body for an answer. */
export const jsonBody = (value) => ({ json: value });

/**
 * Talks to the host until it has had enough.
 *
 * `methods` has one function per method: `"model.route": (params, call) => answer`. It may be async; nothing (or null)
 * means no opinion and no change. A generator, also an async one, answers with a stream: each value it yields is an
 * item, such as `{ body: jsonBody(event) }`; a first `{ result: { headers } }` is the answer that opens the stream, and
 * `return { usage }` gives the token counts (`call.usage = …` outside of a stream). `inputs` says what a method
 * wants to see of the request: `{ "model.route": ["body:/tools"] }`. Id and version are those of plugin.toml.
 */
export function serve({ id, version, methods, inputs, on_error }) {
  const capabilities = [...new Set([REGISTRATION[0], ...Object.keys(methods)])]; // registration is answered in any case
  const hello = { abi: [1], schema: 1, plugin: id, version, features: FEATURES, capabilities, inputs, on_error };
  const [word, path] = process.argv.slice(2);
  if (word === "--describe") {
    process.stdout.write(encode("hello", 0, hello) + "\n");
  } else if (word === "--listen") {
    listen(path.replace(/^unix:/, ""), (input, output) => new Session(methods, hello, output).read(input));
  } else if (process.stdin.isTTY) {
    console.error(
      `${id} is a plugin of the Jackfield gateway, which starts it itself; --describe says what it does, ` +
        "--listen unix:PATH waits for a gateway with JACKFIELD_ATTACH.",
    );
    process.exitCode = EXIT_USAGE;
  } else {
    // What anybody prints must not get between the frames.
    console.log = console.info = console.debug = console.error;
    new Session(methods, hello, process.stdout).read(process.stdin).then(() => process.exit(0));
  }
}

/** Runs one method as a host would, for tests: its answer and the items of its stream. */
export async function tryCall(methods, method, params = {}, config = {}) {
  const items = [];
  const session = new Session(methods, {}, { write: (line) => items.push(JSON.parse(line)) });
  session.config = config;
  const call = new Call(session, { id: 1, method, params, stream: true });
  if (REGISTRATION.includes(method)) session.config = params.config ?? {};
  const answer = await call.answer();
  return { answer, items: items.filter(({ kind }) => kind === "item").map(({ kind, id, ...item }) => item) };
}

/** One call of the host. */
class Call {
  #abort = new AbortController();
  #credit = { ...WINDOW };
  #wake = () => {};
  #session;

  constructor(session, { id, method, params = {}, stream = false }) {
    Object.assign(this, { id, method, params, stream, opened: false });
    this.#session = session;
  }

  /** The plugin's section of the configuration. */
  get config() {
    return this.#session.config;
  }

  /** Aborted when the answer is no longer wanted: the client is gone, or the deadline has passed. */
  get signal() {
    return this.#abort.signal;
  }

  /** Write a structured line into the host's log, as part of this call. */
  log(level, event, fields = {}) {
    this.#session.send("log", 0, { level, event, fields, parent: this.id });
  }

  /** Call the host, `host.kv.get` say, and wait. The plugin needs the method's permission. Throws PluginError. */
  async host(method, params = {}) {
    return (await this.#session.ask(this, method, params)).result;
  }

  /** Call a method of the host that answers with a stream: `{ result, items }`, the items an async iterable. */
  hostStream(method, params = {}) {
    return this.#session.ask(this, method, params, true);
  }

  cancel() {
    this.#abort.abort(new PluginError(499, "cancelled", "the call was cancelled"));
    this.#wake();
  }

  grant({ items = 0, bytes = 0 }) {
    this.#credit.items += items;
    this.#credit.bytes += bytes;
    this.#wake();
  }

  /** Call the method. Opens a stream for a generator and sends all of it; throws what the method throws. */
  async answer() {
    const method = this.#session.methods[this.method];
    if (!method && REGISTRATION.includes(this.method)) return null;
    if (!method) throw new PluginError(500, "method_not_found", `this plugin has no ${this.method}`);
    const answer = await method(this.params, this);
    return typeof answer?.next === "function" ? this.#streamed(answer) : answer;
  }

  async #streamed(generator) {
    try {
      let step = await generator.next(); // an error before the first item is an ordinary answer
      if (!this.stream) throw new PluginError(500, "plugin_error", `the caller of ${this.method} takes no stream`);
      this.signal.throwIfAborted();
      this.opened = true;
      const result = step.value?.result;
      this.#session.send("result", this.id, { ok: true, stream: true, result });
      if (result) step = await generator.next();
      while (!step.done) {
        await this.#item(step.value);
        step = await generator.next();
      }
      this.usage = step.value?.usage ?? this.usage;
      return null;
    } finally {
      await generator.return?.(); // runs the generator's own `finally`
    }
  }

  async #item(item) {
    const line = encode("item", this.id, item);
    const size = Buffer.byteLength(line);
    while (this.#session.has("credit") && (this.#credit.items <= 0 || this.#credit.bytes <= 0) && !this.signal.aborted) {
      await new Promise((wake) => (this.#wake = wake));
    }
    this.signal.throwIfAborted();
    this.#credit.items -= 1;
    this.#credit.bytes -= size;
    this.#session.write(line, size);
  }
}

/** One conversation with a host. */
class Session {
  config = {};
  #features = [];
  #outMax = MAX_FRAME;
  #calls = new Map();
  #asked = new Map();
  #lastId = 0;

  constructor(methods, hello, output) {
    Object.assign(this, { methods, hello, output });
  }

  has(feature) {
    return this.#features.includes(feature);
  }

  send(kind, id, fields) {
    const line = encode(kind, id, fields);
    this.write(line, Buffer.byteLength(line));
  }

  write(line, size) {
    if (size > this.#outMax) throw new PluginError(413, "plugin_body_too_large", `a frame of ${size} bytes`);
    this.output.write(line + "\n");
  }

  /** Routes frames until the host closes its side. Never waits for a method. */
  async read(input) {
    for await (const { line, whole } of linesOf(input)) {
      let frame;
      try {
        if (!whole) throw new PluginError(413, "plugin_body_too_large", "a frame above the limit");
        frame = JSON.parse(line);
      } catch (error) {
        this.#refuse(line.subarray(0, HEAD_BYTES).toString(), error);
        continue;
      }
      this.#route(frame, line.length);
    }
    for (const call of this.#calls.values()) call.cancel();
  }

  #route(frame, size) {
    const { kind, id } = frame;
    if (kind === "hello") {
      this.#features = FEATURES.filter((name) => frame.features?.includes(name));
      this.#outMax = frame.limits?.max_frame_bytes ?? MAX_FRAME;
      this.send("hello", 0, this.hello);
    } else if (kind === "call") this.#run(new Call(this, frame));
    else if (kind === "cancel") this.#calls.get(id)?.cancel();
    else if (kind === "credit") this.#calls.get(id)?.grant(frame);
    else if (kind === "ping") this.send("pong", id, {});
    else if (["result", "item", "end"].includes(kind)) this.#asked.get(id)?.(frame, size);
    // goaway asks nothing of us, and unknown kinds are for later versions
  }

  /** Answers a call that cannot be read; other frames of that sort are dropped. */
  #refuse(head, error) {
    console.error(`unusable frame: ${error.message}`);
    const id = /"id"\s*:\s*(\d+)/.exec(head)?.[1];
    if (id && head.includes('"call"')) this.send("result", Number(id), { ok: false, error: errorOf(error) });
  }

  /** Gives the call its one closing frame. */
  async #run(call) {
    this.#calls.set(call.id, call);
    if (REGISTRATION.includes(call.method)) this.config = call.params.config ?? {};
    const close = (fields) => this.send(call.opened ? "end" : "result", call.id, { ...fields, usage: call.usage });
    try {
      const result = await call.answer();
      close(call.opened ? { ok: true } : { ok: true, result: result ?? null });
    } catch (error) {
      if (!(error instanceof PluginError) && !call.signal.aborted) console.error(error);
      close({ ok: false, error: errorOf(call.signal.aborted ? call.signal.reason : error) });
    }
    this.#calls.delete(call.id);
  }

  /** Sends a call of our own and waits for its result; `items` are those of the stream it opened. */
  async ask(parent, method, params, stream = false) {
    parent.signal.throwIfAborted();
    const id = ++this.#lastId;
    const arrived = [];
    let wake = () => {};
    this.#asked.set(id, (frame, size) => {
      if (frame.kind === "end" || (frame.kind === "result" && !frame.stream)) this.#asked.delete(id);
      arrived.push({ frame, size });
      wake();
    });
    const next = async () => {
      while (!arrived.length) {
        parent.signal.throwIfAborted();
        await new Promise((resolve) => {
          wake = resolve;
          parent.signal.addEventListener("abort", resolve, { once: true });
        });
        parent.signal.removeEventListener("abort", wake);
      }
      const { frame, size } = arrived.shift();
      if (frame.ok === false) throw errorFrom(frame.error);
      if (frame.kind === "item") this.send("credit", id, { items: 1, bytes: size });
      return frame;
    };
    const close = () => {
      if (this.#asked.delete(id) && this.has("cancel")) this.send("cancel", id, { reason: "client_gone" });
    };
    this.send("call", id, { method, params, parent: parent.id, stream: stream || undefined });
    let opening;
    try {
      opening = await next();
    } catch (error) {
      close();
      throw error;
    }
    async function* items() {
      try {
        for (let frame = await next(); frame.kind === "item"; frame = await next()) yield frame;
      } finally {
        close();
      }
    }
    return { result: opening.result ?? {}, items: opening.stream ? items() : [] };
  }
}

/** A line without its end. Kind and id come first, so that they can be read from the start of one that is too long. */
function encode(kind, id, fields) {
  return JSON.stringify({ kind, id: id || undefined, ...fields });
}

function errorOf(error) {
  return error?.fields ?? { message: error?.message || String(error) || "failed", code: "plugin_error" };
}

function errorFrom({ message = "plugin call failed", code, http_status, ...more } = {}) {
  return new PluginError(http_status ?? 500, code ?? "plugin_error", message, more);
}

/** The lines of a stream as buffers; of a line above the limit only the head. */
async function* linesOf(input) {
  let parts = [];
  let length = 0;
  let whole = true;
  for await (const chunk of input) {
    for (let at = 0; at < chunk.length; ) {
      const end = chunk.indexOf(10, at);
      const part = chunk.subarray(at, end < 0 ? chunk.length : end);
      at += part.length + 1;
      if (length + part.length > MAX_FRAME) whole = false;
      if (whole || length < HEAD_BYTES) parts.push(part);
      length += part.length;
      if (end < 0) continue;
      const line = parts.length === 1 ? parts[0] : Buffer.concat(parts);
      if (line.length) yield { line, whole };
      [parts, length, whole] = [[], 0, true];
    }
  }
}

/** Serves one gateway after the other at a socket of this user, for a debugger. */
function listen(path, serveOne) {
  rmSync(path, { force: true });
  const server = createServer((socket) => {
    socket.on("error", (error) => console.error(error.message));
    serveOne(socket, socket).catch((error) => console.error(error.message));
  });
  server.listen(path, () => {
    chmodSync(path, 0o600);
    console.error(`listening on unix:${path}`);
  });
}
