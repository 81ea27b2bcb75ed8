// The plugin's process: speaks with the gateway, reads the script file, and keeps time while a worker runs the script.
import { readFileSync, statSync } from "node:fs";
import { resolve } from "node:path";
import { listen, send } from "./wire.mjs";
import { Script } from "./script.mjs";

const HOOKS = [
  "request.intercept_before", "request.intercept_after", "response.intercept_after", "response.intercept_stream_chunk",
];
const HELLO = {
  kind: "hello", abi: [1], schema: 1, plugin: "js-handler", version: "0.1.0", features: ["cancel", "ping", "goaway"],
  capabilities: ["plugin.register", "plugin.reconfigure", "plugin.shutdown", ...HOOKS, "request.complete"],
};

const open = new Set(); // ids of calls without a closing frame
const file = { path: "", stamp: "" };
let script = null;
let registered = [];

/** Takes a configuration: a script that does not load is refused, and the one before goes on. */
async function configure({ config = {} }) {
  if (typeof config.script !== "string" || !config.script) {
    throw { message: "set script: the path of a JavaScript file", code: "script_missing", http_status: 400 };
  }
  // The working directory is the plugin's data directory, two levels below config.yaml.
  const path = resolve(process.cwd(), "..", "..", config.script);
  const settings = { path, timeoutMs: config.timeout_ms ?? 400, memoryMb: config.memory_mb ?? 64, options: config.options ?? {} };
  const [source, stamp] = read(path);
  const next = new Script(settings, log);
  try {
    await next.load(source);
  } catch (error) {
    next.close();
    throw error;
  }
  script?.retire();
  [script, file.path, file.stamp] = [next, path, stamp];
  registered = next.methods;
  return { capabilities: [...HELLO.capabilities.filter((name) => !HOOKS.includes(name)), ...next.methods] };
}

function read(path) {
  try {
    return [readFileSync(path, "utf8"), stampOf(path)];
  } catch (error) {
    throw { message: `${path}: ${error.code === "ENOENT" ? "there is no such file" : error.message}`, code: "script_missing", http_status: 400 };
  }
}

function stampOf(path) {
  const { mtimeMs, size, ino } = statSync(path);
  return `${mtimeMs}:${size}:${ino}`;
}

/** Loads the file anew when it changed; one that cannot be used is reported once, and the last good one goes on. */
function refresh() {
  let stamp = "gone";
  try {
    stamp = stampOf(file.path);
  } catch { /* as good as any other change: reading it says why */ }
  if (stamp === file.stamp) return;
  file.stamp = stamp;
  reload().catch((error) => log("error", "script.rejected", { message: error.message }));
}

async function reload() {
  // Sent before the call that noticed the change, so that this call is the first to be served by the new version.
  await script.load(read(file.path)[0]);
  log("info", "script.loaded", { path: file.path });
  const missing = script.methods.filter((name) => !registered.includes(name));
  // Which hooks there are is said at registration, and the gateway calls no others.
  if (missing.length) log("warning", "script.hooks_added", { missing, message: "run: jackfield plugins reload js-handler" });
}

function log(level, event, fields, parent) {
  send({ kind: "log", level, event, fields, ...(open.has(parent) ? { parent } : {}) });
}

async function serve({ id, method, params = {} }) {
  switch (method) {
    case "plugin.register":
    case "plugin.reconfigure":
      return configure(params);
    case "plugin.shutdown":
      return {};
    case "request.complete":
      script?.forget(params.request_id);
      return {};
    default:
      if (!HOOKS.includes(method)) throw { message: `js-handler has no ${method}`, code: "method_not_found" };
      if (!script) throw { message: "no script was configured", code: "script_missing" };
      refresh();
      return script.run(id, method, params);
  }
}

function close(id, outcome) {
  if (open.delete(id)) send({ kind: "result", id, ...outcome });
}

function failure({ message, code = "script_error", http_status, retryable }) {
  return { ok: false, error: { message: String(message ?? "failed"), code, http_status, retryable } };
}

function receive(frame) {
  if (frame.kind === "hello") send(HELLO);
  else if (frame.kind === "ping") send({ kind: "pong", id: frame.id });
  else if (frame.kind === "cancel") close(frame.id, failure({ message: "cancelled", code: "cancelled", http_status: 499 }));
  else if (frame.kind === "call") {
    open.add(frame.id);
    serve(frame).then((result) => close(frame.id, { ok: true, result }), (error) => close(frame.id, failure(error)));
  }
}

if (process.argv.includes("--describe")) {
  send(HELLO);
} else if (process.stdin.isTTY) {
  console.error("js-handler is a plugin of the Jackfield gateway, which starts it itself; try --describe.");
  process.exitCode = 64;
} else {
  listen(receive);
}
