// A router in Node without any SDK: one JSON object per line, in on stdin, out on stdout.
// `team-a/gpt-x` becomes model `gpt-x` at the provider that the configuration names for `team-a`.
import { createInterface } from "node:readline";

// stdout is the wire. Whatever a library prints goes to stderr, which the host keeps as the plugin's log.
console.log = console.info = console.debug = console.error;

const send = (frame) => process.stdout.write(JSON.stringify(frame) + "\n");
const hello = {
  kind: "hello", abi: [1], schema: 1, plugin: "node-router", version: "1.0.0",
  features: ["cancel", "ping"], capabilities: ["plugin.register", "model.route"],
};
let teams = {};

const methods = {
  "plugin.register": ({ config }) => {
    teams = config?.teams ?? {};
    return {};
  },
  "model.route": ({ requested_model }) => {
    const [team, ...rest] = requested_model.split("/");
    if (!rest.length) return null; // no opinion
    if (!Object.hasOwn(teams, team)) {
      throw { message: `unknown team ${team}`, code: "unknown_team", http_status: 404 };
    }
    return { target_kind: "provider", target: teams[team], target_model: rest.join("/"), reason: `team ${team}` };
  },
};

function answer({ id, method, params = {} }) {
  try {
    if (!methods[method]) throw { message: `no ${method}`, code: "method_not_found" };
    send({ kind: "result", id, ok: true, result: methods[method](params) });
  } catch (error) {
    const { message = "failed", code, http_status } = error;
    send({ kind: "result", id, ok: false, error: { message, code, http_status } });
  }
}

if (process.argv.includes("--describe")) {
  send(hello);
} else if (process.stdin.isTTY) {
  console.error("node-router is a plugin of the Jackfield gateway, which starts it itself; try --describe.");
  process.exitCode = 64;
} else {
  createInterface({ input: process.stdin })
    .on("line", (line) => {
      const frame = JSON.parse(line);
      if (frame.kind === "hello") send(hello);
      else if (frame.kind === "ping") send({ kind: "pong", id: frame.id });
      else if (frame.kind === "call") answer(frame);
      // Calls are answered at once, so there is never one to cancel; unknown kinds are ignored.
    })
    .on("close", () => process.exit(0)); // the host closed stdin: it is over
}
