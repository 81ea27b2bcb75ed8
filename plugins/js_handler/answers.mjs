// What a script sees of a call, and what its answer changes: authoritative, so what it leaves out is removed.

/** The call's params as a script sees them: bodies decoded, headers with one value as a string. */
export function shown(params) {
  const ctx = { ...params, body: decoded(params.body) };
  for (const name of ["headers", "request_headers", "query"]) if (ctx[name]) ctx[name] = flat(ctx[name]);
  delete ctx.body_size;
  return ctx;
}

function decoded(body) {
  if (!body) return null;
  return "json" in body ? body.json : "text" in body ? body.text : null;
}

function flat(headers) {
  return Object.fromEntries(Object.entries(headers).map(([name, values]) => [name, values.length === 1 ? values[0] : values]));
}

export function requestAnswer(hook, params, answer) {
  if (!isAnswer(hook, answer)) return null;
  if (answer.terminate) return { terminate: termination(hook, answer.terminate) };
  const { headers: response_headers } = headerDelta({}, answer.response_headers);
  return {
    ...headerDelta(params.headers, answer.headers), ...bodyDelta(params.body, answer),
    ...(response_headers ? { response_headers } : {}),
  };
}

export function responseAnswer(hook, params, answer) {
  if (!isAnswer(hook, answer)) return null;
  return { ...headerDelta(params.headers, answer.headers), ...bodyDelta(params.body, answer) };
}

/** Stream items: `call(name, ctx)` asks the script; a chunk may stay, change, go, or become several. */
export async function itemsAnswer(params, call) {
  const { items = [], ...about } = params;
  if (about.index === -1) {
    const answer = await call("on_stream_start", shown(about));
    return isAnswer("on_stream_start", answer) ? headerDelta(params.headers, answer.headers) : null;
  }
  const out = [];
  let changed = false;
  for (const [at, item] of items.entries()) {
    const ctx = shown({ ...about, last: false, index: (about.index ?? 0) + at, event: item.event ?? null, body: item.body });
    const answer = await call("on_response_chunk", ctx);
    const made = itemsOf("on_response_chunk", item, answer);
    changed ||= made.length !== 1 || made[0] !== item;
    out.push(...made);
  }
  if (about.last) {
    const made = itemsOf("on_stream_end", null, await call("on_stream_end", shown(about)));
    changed ||= made.length > 0;
    out.push(...made);
  }
  return changed ? { items: out } : null;
}

function itemsOf(hook, item, answer) {
  if (answer === null) return item ? [item] : [];
  if (Array.isArray(answer)) return answer.flatMap((one) => itemsOf(hook, null, one));
  isAnswer(hook, answer);
  if (answer.drop) return [];
  const event = answer.event ?? item?.event;
  if (item && !("body" in bodyDelta(item.body, answer)) && event === item.event) return [item];
  if (answer.body === undefined) throw new TypeError(`${hook}: a stream item has a body`);
  return [{ ...(event ? { event } : {}), body: encoded(answer.body, item?.body) }];
}

function isAnswer(hook, answer) {
  if (answer === null) return false;
  if (typeof answer !== "object" || Array.isArray(answer)) {
    throw new TypeError(`${hook} returned ${JSON.stringify(answer)}; return nothing, or an object with body and headers`);
  }
  return true;
}

function headerDelta(before = {}, after) {
  if (after === undefined || after === null) return {};
  const wanted = new Map();
  for (const [name, value] of Object.entries(after)) {
    if (value !== null) wanted.set(name.toLowerCase(), (Array.isArray(value) ? value : [value]).map(String));
  }
  const clear = Object.keys(before).filter((name) => !wanted.has(name));
  const changed = [...wanted].filter(([name, values]) => JSON.stringify(values) !== JSON.stringify(before[name]));
  return {
    ...(clear.length ? { clear_headers: clear } : {}),
    ...(changed.length ? { headers: Object.fromEntries(changed) } : {}),
  };
}

function bodyDelta(before, answer) {
  // Unchanged is not sent back: the gateway then keeps the very bytes, large numbers and all.
  if (answer.body === undefined || JSON.stringify(answer.body) === JSON.stringify(decoded(before))) return {};
  return { body: encoded(answer.body, before) };
}

function encoded(value, before) {
  if (value === null) return { text: "" };
  return typeof value === "string" && !(before && "json" in before) ? { text: value } : { json: value };
}

function termination(hook, { status = 200, headers = {}, body }) {
  if (!Number.isInteger(status) || status < 200 || status > 599) throw new TypeError(`${hook}: terminate.status is 200 to 599`);
  return { status, ...headerDelta({}, headers), ...(body === undefined ? {} : { body: encoded(body, null) }) };
}
