// The worker: runs the operator's script in a context of its own, and turns what it returns into deltas.
//
// A context is no wall: it keeps honest scripts apart from Node, not hostile ones. The wall is the process.
import { basename } from "node:path";
import { parentPort, workerData } from "node:worker_threads";
import vm from "node:vm";
import { itemsAnswer, requestAnswer, responseAnswer, shown } from "./answers.mjs";

const FUNCTIONS = {
  "request.intercept_before": ["on_before_request"],
  "request.intercept_after": ["on_after_auth_request"],
  "response.intercept_after": ["on_response"],
  "response.intercept_stream_chunk": ["on_response_chunk", "on_stream_start", "on_stream_end"],
};
const NAMES = Object.values(FUNCTIONS).flat();
const MAX_REQUESTS = 10_000;
// Inside of the context, so that the script works with values of its own realm.
const PRELUDE = `((log) => {
  const text = (value) => (typeof value === "string" ? value : value instanceof Error ? value.stack : JSON.stringify(value) ?? String(value));
  const writer = (level) => (...values) => log(level, values.map(text).join(" "));
  globalThis.console = Object.freeze({
    debug: writer("debug"), log: writer("info"), info: writer("info"), warn: writer("warning"), error: writer("error"),
  });
  return {
    parse: JSON.parse,
    call: async (hook, ctx) => JSON.stringify((await hook(ctx)) ?? null),
  };
})`;
const { path, options } = workerData;

let running = null; // number of the call whose script code is on the stack
let version = null;
const requests = new Map(); // request id -> { version, state }

function compile(source) {
  const context = vm.createContext(
    { URL, URLSearchParams, TextEncoder, TextDecoder, atob, btoa, crypto },
    { codeGeneration: { strings: false, wasm: false } },
  );
  const say = (level, message) => parentPort.postMessage({ number: running, log: { level, message } });
  const inside = vm.runInContext(PRELUDE, context, { filename: "prelude" })(say);
  new vm.Script(source, { filename: path }).runInContext(context);
  const hooks = {};
  for (const name of NAMES) {
    const found = vm.runInContext(`typeof ${name} === "function" ? ${name} : null`, context);
    if (found) hooks[name] = found;
  }
  return { hooks, inside, options: inside.parse(JSON.stringify(options)) };
}

function load(source) {
  const next = compile(source);
  const methods = Object.keys(FUNCTIONS).filter((method) => FUNCTIONS[method].some((name) => next.hooks[name]));
  if (!methods.length) throw new TypeError(`none of ${NAMES.join(", ")} is a function`);
  version = next;
  return JSON.stringify(methods);
}

function requestOf(id) {
  let request = requests.get(id);
  if (!request) {
    request = { version, state: version.inside.parse("{}") };
    requests.set(id, request);
    // Requests that nobody ended would stay for ever.
    if (requests.size > MAX_REQUESTS) requests.delete(requests.keys().next().value);
  }
  return request;
}

/** Calls `name` with `fields` as its ctx; null when the script has no such function, or no opinion. */
function ask(number, request, name, fields) {
  const { hooks, inside, options } = request.version;
  if (!hooks[name]) return null;
  const ctx = inside.parse(JSON.stringify(fields));
  running = number;
  try {
    // The part up to its first await runs here.
    return inside.call(hooks[name], Object.assign(ctx, { options, state: request.state })).then(JSON.parse);
  } finally {
    running = null;
  }
}

async function run(number, method, params) {
  const request = requestOf(params.request_id ?? "");
  const call = async (name, fields) => {
    try {
      return await ask(number, request, name, fields);
    } catch (error) {
      throw named(error, name);
    }
  };
  if (method === "response.intercept_stream_chunk") return itemsAnswer(params, call);
  const [name] = FUNCTIONS[method];
  const answer = await call(name, shown(params));
  return method === "response.intercept_after" ? responseAnswer(name, params, answer) : requestAnswer(name, params, answer);
}

/** An error of the script with the place it came from, and the status it asked for, if any. */
function named(error, name) {
  const thrown = error !== null && typeof error === "object" ? error : { message: String(error) };
  const at = placeIn(String(thrown.stack ?? ""));
  const what = thrown.name ? `${thrown.name}: ` : "";
  const message = `${at ? `${basename(path)}:${at}: ` : ""}${what}${thrown.message ?? "an error without a message"}`;
  const status = Number.isInteger(thrown.http_status) && thrown.http_status >= 400 && thrown.http_status <= 599;
  return {
    contract: {
      message: name ? `${message} (in ${name})` : message,
      ...(typeof thrown.code === "string" ? { code: thrown.code } : {}),
      ...(status ? { http_status: thrown.http_status } : {}),
    },
  };
}

/** Line and column of the first frame in the script; of a syntax error the line in its heading. */
function placeIn(stack) {
  const places = stack.split(`${path}:`).slice(1).map((rest) => rest.match(/^\d+(:\d+)?/)?.[0] ?? "");
  return places.find((place) => place.includes(":")) ?? places[0] ?? "";
}

async function serve({ number, method, text }) {
  parentPort.postMessage({ number, started: true });
  try {
    const answer = method === "load" ? load(text) : JSON.stringify(await run(number, method, JSON.parse(text)));
    parentPort.postMessage({ number, ok: true, text: answer });
  } catch (error) {
    parentPort.postMessage({ number, ok: false, error: error?.contract ?? named(error).contract });
  }
}

if (workerData.source) load(workerData.source);
parentPort.on("message", (message) => ("forget" in message ? requests.delete(message.forget) : serve(message)));
