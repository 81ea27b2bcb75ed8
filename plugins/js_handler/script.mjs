// One configured script: a worker that runs it, the calls in it, and the clock.
import { basename } from "node:path";
import { Worker } from "node:worker_threads";

export class Script {
  #settings;
  #log;
  #worker = null;
  #source = ""; // the last one that loaded
  #calls = new Map(); // number -> { method, text, parent, resolve, reject, started, timer }
  #numbers = 0;
  #retired = false;
  methods = [];

  constructor(settings, log) {
    this.#settings = settings;
    this.#log = log;
  }

  /** Compiles `source` and runs its top level; requests that began before go on with what they began with. */
  async load(source) {
    this.methods = JSON.parse(await this.#ask("load", source));
    this.#source = source;
  }

  /** What a hook's answer means as a delta of the contract. Rejects with an error object of the contract. */
  async run(parent, method, params) {
    return JSON.parse(await this.#ask(method, JSON.stringify(params), parent));
  }

  /** The request is over: its state and its version of the script may go. */
  forget(requestId) {
    this.#worker?.postMessage({ forget: requestId });
  }

  /** Another script takes over; this one ends with its last call. */
  retire() {
    this.#retired = true;
    if (this.#calls.size === 0) this.close();
  }

  close() {
    const worker = this.#worker;
    this.#worker = null;
    worker?.terminate();
  }

  #ask(method, text, parent) {
    return new Promise((resolve, reject) => {
      const number = ++this.#numbers;
      this.#calls.set(number, { method, text, parent, resolve, reject, started: false, timer: null });
      this.#start().postMessage({ number, method, text });
    });
  }

  #start() {
    if (this.#worker) return this.#worker;
    const { path, memoryMb, options } = this.#settings;
    const worker = new Worker(new URL("./runner.mjs", import.meta.url), {
      workerData: { path, options, source: this.#source },
      env: {},
      resourceLimits: { maxOldGenerationSizeMb: memoryMb },
    });
    worker.on("message", (message) => this.#received(worker, message));
    worker.on("error", (error) => this.#lost(worker, `${basename(path)}: ${error.message}`));
    this.#worker = worker;
    return worker;
  }

  #received(worker, { number, started, ok, text, error, log }) {
    const call = this.#calls.get(number);
    if (log) this.#log(log.level, "script.says", { message: log.message }, call?.parent);
    if (!call || worker !== this.#worker) return;
    if (started) {
      // From here on, not from when it was sent: time spent waiting behind another call is not the script's.
      call.started = true;
      call.timer = setTimeout(() => this.#lost(worker, this.#late(call.method), number), this.#settings.timeoutMs);
    } else if (ok !== undefined) {
      this.#settle(number, call, () => (ok ? call.resolve(text) : call.reject(error)));
    }
  }

  #late(method) {
    const what = method === "load" ? "its top level" : method;
    return `${basename(this.#settings.path)}: ${what} took longer than ${this.#settings.timeoutMs} ms`;
  }

  /** The worker broke, or has to be stopped: what it had begun fails, what waited is asked of the next one. */
  #lost(worker, message, guilty) {
    if (worker !== this.#worker) return;
    this.close();
    for (const [number, call] of [...this.#calls]) {
      if (!call.started) this.#start().postMessage({ number, method: call.method, text: call.text });
      else {
        const text = guilty === undefined || guilty === number ? message : `stopped beside another call: ${message}`;
        this.#settle(number, call, () => call.reject({ message: text }));
      }
    }
  }

  #settle(number, call, answer) {
    clearTimeout(call.timer);
    this.#calls.delete(number);
    answer();
    if (this.#retired && this.#calls.size === 0) this.close();
  }
}
