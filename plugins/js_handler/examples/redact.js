// Redacts e-mail addresses, payment card numbers and API keys, in requests before they leave the house and in answers
// before they reach the client, streams included. Also removes headers that name the user.
//
// options: { drop_headers: ["x-user-email"], answers: true }

const PATTERNS = [
  ["[api key]", /\b(?:sk-[\w-]{16,}|AIza[\w-]{30,}|gh[pousr]_[A-Za-z0-9]{30,}|AKIA[A-Z0-9]{16}|xox[abprs]-[\w-]{10,})/g],
  ["[email]", /[\w.%+-]+@[A-Za-z0-9-]+(?:\.[A-Za-z0-9-]+)+/g],
  ["[card]", /(?<!\d)\d(?:[ -]?\d){12,18}(?!\d)/g, isCard],
];
// What may still grow into one of these when the next chunk comes: a run of digits, and whatever follows without a space.
const UNFINISHED = /(?:\d[\d -]*)?\S{0,256}$/;

function on_before_request(ctx) {
  const drop = ctx.options.drop_headers ?? ["x-user-email"];
  const headers = Object.entries(ctx.headers).filter(([name]) => !drop.includes(name));
  return { headers: redacted(Object.fromEntries(headers)), body: redacted(ctx.body) };
}

function on_response(ctx) {
  if (ctx.options.answers === false) return;
  return { body: redacted(ctx.body) };
}

// A name may be cut in two by a chunk's end, so text that is not finished waits for the next chunk.
function on_response_chunk(ctx) {
  if (ctx.options.answers === false) return;
  const held = (ctx.state.held ??= {});
  const found = texts(ctx.body);
  const before = found.length ? [] : released(held);
  for (const text of found) {
    const whole = (held[text.key]?.tail ?? "") + text.value;
    const tail = text.ends ? "" : UNFINISHED.exec(whole)[0];
    held[text.key] = { tail, chunk: JSON.stringify(ctx.body), event: ctx.event };
    text.value = redact(whole.slice(0, whole.length - tail.length));
  }
  return [...before, { event: ctx.event, body: redacted(ctx.body) }];
}

function on_stream_end(ctx) {
  return released(ctx.state.held ?? {});
}

function released(held) {
  const items = [];
  for (const [key, { tail, chunk, event }] of Object.entries(held)) {
    delete held[key];
    if (!tail) continue;
    const body = JSON.parse(chunk);
    for (const text of texts(body)) text.value = text.key === key ? redact(tail) : "";
    for (const choice of body.choices ?? []) delete choice.delta?.role;
    items.push({ event, body });
  }
  return items;
}

/** Where a chunk has pieces of text, in the four protocols. */
function texts(body) {
  const found = [];
  const add = (key, holder, name, ends) => {
    if (typeof holder?.[name] === "string") found.push(new Text(key, holder, name, ends));
  };
  for (const choice of body?.choices ?? []) add(`choice ${choice.index}`, choice.delta, "content", choice.finish_reason != null);
  if (body?.type === "content_block_delta") add(`block ${body.index}`, body.delta, "text", false);
  if (body?.type === "response.output_text.delta") add(`output ${body.output_index}.${body.content_index}`, body, "delta", false);
  for (const candidate of body?.candidates ?? []) {
    for (const part of candidate.content?.parts ?? []) {
      add(`candidate ${candidate.index ?? 0}`, part, "text", candidate.finishReason != null);
    }
  }
  return found;
}

class Text {
  constructor(key, holder, name, ends) {
    Object.assign(this, { key, holder, name, ends });
  }
  get value() {
    return this.holder[this.name];
  }
  set value(text) {
    this.holder[this.name] = text;
  }
}

/** Every string of a JSON value, but for pictures and sound. */
function redacted(value) {
  if (typeof value === "string") return value.startsWith("data:") ? value : redact(value);
  if (Array.isArray(value)) return value.map(redacted);
  if (value === null || typeof value !== "object") return value;
  return Object.fromEntries(Object.entries(value).map(([name, member]) => [name, name === "data" ? member : redacted(member)]));
}

function redact(text) {
  for (const [mark, pattern, check] of PATTERNS) text = text.replace(pattern, (found) => (!check || check(found) ? mark : found));
  return text;
}

/** The checksum of card numbers (Luhn): every second digit from the right counts twice. */
function isCard(text) {
  const digits = [...text.replace(/\D/g, "")].reverse().map(Number);
  const sum = digits.reduce((total, digit, at) => total + (at % 2 ? (digit > 4 ? 2 * digit - 9 : 2 * digit) : digit), 0);
  return sum % 10 === 0;
}
