# A router that is one jq program: every line from the host comes in as `.`, every value that goes out is a line back.
# Without features a plugin gets its calls one at a time and nothing else (the minimal profile).
if .kind == "hello" then
  {kind: "hello", abi: [1], schema: 1, plugin: "jq-router", version: "1.0.0", capabilities: ["model.route"],
   inputs: {"model.route": ["body:/messages/-1"]}}
elif .kind == "call" and .method == "model.route" then
  (.params.body_parts["/messages/-1"].content? // "" | tostring | length) as $length
  | {kind: "result", id, ok: true,
     result: (if .params.requested_model != "by-length" then null
              elif $length < 200 then {target_kind: "executor", target: "echo", reason: "a short question"}
              else {target_kind: "provider", target: "openai-compatible-acme", target_model: "acme-large",
                    reason: "a long question"} end)}
elif .kind == "call" then
  {kind: "result", id, ok: false, error: {message: "this plugin has no \(.method)", code: "method_not_found"}}
else empty end
