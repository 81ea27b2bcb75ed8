//! Speaks the Jackfield plugin protocol, ABI 1: one JSON object per line, over stdin and stdout.
//!
//! It needs serde_json and the standard library, and is part of your plugin: read it, change it. The names of methods
//! and fields are those of the protocol's page, proto/README.md of Jackfield.
#![allow(dead_code)] // a plugin uses what it needs

use serde_json::{json, Map, Value};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::io::FromRawFd;
use std::os::unix::net::UnixListener;
use std::panic::{catch_unwind, AssertUnwindSafe};
use std::sync::mpsc::{channel, Receiver, Sender};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::thread;

const MAX_FRAME: usize = 16 << 20; // bytes of a line, until a hello says otherwise
const HEAD_BYTES: usize = 4096; // the id of a line that is too long stands within its first bytes
const WINDOW_ITEMS: i64 = 32; // credit of a new stream
const WINDOW_BYTES: i64 = 1 << 20;
const EXIT_USAGE: i32 = 64;
const FEATURES: [&str; 5] = ["cancel", "credit", "ping", "goaway", "callback_streams"];

/// What a handler answers: a value, or `Value::Null` for no opinion and no change.
pub type Answer = Result<Value, Error>;
type Handler = Box<dyn Fn(&Call) -> Answer + Send + Sync>;

/// The protocol's error object, of which only the message is required. Made with `Error::new`, filled with `with`.
#[derive(Debug, Clone, PartialEq)]
pub struct Error(pub Map<String, Value>);

impl Error {
    /// An error with a status of 400 to 599.
    pub fn new(status: u16, code: &str, message: &str) -> Error {
        Error(Map::new()).with("message", message).with("code", code).with("http_status", status)
    }

    /// The same with one more member, such as `retryable` or `retry_after_ms`.
    pub fn with(mut self, name: &str, value: impl Into<Value>) -> Error {
        self.0.insert(name.to_string(), value.into());
        self
    }

    fn cancelled() -> Error {
        Error::new(499, "cancelled", "the call was cancelled")
    }

    fn of(frame: &Value) -> Error {
        let known = frame["error"].as_object().cloned();
        known.map_or_else(|| Error::new(500, "plugin_error", "plugin call failed"), Error)
    }
}

impl fmt::Display for Error {
    fn fmt(&self, to: &mut fmt::Formatter) -> fmt::Result {
        write!(to, "{}", self.0.get("message").and_then(Value::as_str).unwrap_or("plugin call failed"))
    }
}

/// So that `?` works with the errors of libraries: each is a 500.
impl<E: std::error::Error> From<E> for Error {
    fn from(error: E) -> Error {
        Error::new(500, "plugin_error", &error.to_string())
    }
}

/// A body for an answer.
pub fn json_body(value: Value) -> Value {
    json!({ "json": value })
}

/// The JSON of a body in a request, in whichever form it came; null when there is none.
pub fn body_of(body: &Value) -> Value {
    match body.get("text") {
        Some(Value::String(text)) => serde_json::from_str(text).unwrap_or(Value::Null),
        _ => body.get("json").cloned().unwrap_or(Value::Null),
    }
}

/// A plugin: `Plugin::new(id, version).on("model.route", route).run()`. Id and version are those of plugin.toml.
pub struct Plugin {
    id: String,
    version: String,
    handlers: BTreeMap<String, Handler>,
    inputs: Map<String, Value>,
    on_error: Map<String, Value>,
}

impl Plugin {
    pub fn new(id: &str, version: &str) -> Plugin {
        let (handlers, inputs, on_error) = Default::default();
        Plugin { id: id.to_string(), version: version.to_string(), handlers, inputs, on_error }
    }

    /// Answer a method. Every call runs in a thread of its own.
    pub fn on(mut self, method: &str, handler: impl Fn(&Call) -> Answer + Send + Sync + 'static) -> Plugin {
        self.handlers.insert(method.to_string(), Box::new(handler));
        self
    }

    /// What a method wants to see of the request, such as `body:/tools`.
    pub fn inputs(mut self, method: &str, words: &[&str]) -> Plugin {
        self.inputs.insert(method.to_string(), json!(words));
        self
    }

    /// `fail` or `skip`: what becomes of the request when the method fails.
    pub fn on_error(mut self, method: &str, mode: &str) -> Plugin {
        self.on_error.insert(method.to_string(), json!(mode));
        self
    }

    /// Talk to the host until it has had enough; does not return.
    pub fn run(self) -> ! {
        let words: Vec<String> = std::env::args().collect();
        if words.get(1).map(String::as_str) == Some("--describe") {
            println!("{}", encode("hello", 0, self.hello()));
            std::process::exit(0);
        }
        let plugin = Arc::new(self);
        if words.get(1).map(String::as_str) == Some("--listen") && words.len() > 2 {
            let problem = listen(&plugin, words[2].trim_start_matches("unix:"));
            eprintln!("{}: {}", words[2], problem.unwrap_err());
            std::process::exit(1);
        }
        if is_terminal() {
            eprintln!(
                "{} is a plugin of the Jackfield gateway, which starts it itself; --describe says what it does, \
                 --listen unix:PATH waits for a gateway with JACKFIELD_ATTACH.",
                plugin.id
            );
            std::process::exit(EXIT_USAGE);
        }
        Session::new(&plugin, Box::new(claim_stdout())).read(io::stdin());
        std::process::exit(0);
    }

    /// Run one handler as a host would, for tests: its answer and the items of its stream.
    pub fn try_call(self, method: &str, params: Value, config: Value) -> (Answer, Vec<Value>) {
        let (sent, received) = channel();
        let session = Session::new(&Arc::new(self), Box::new(Collector(sent)));
        session.state().config = if is_registration(method) { params["config"].clone() } else { config };
        let call = Call::new(&session, &json!({"id": 1, "method": method, "params": params, "stream": true}));
        let mut answer = call.answer();
        let frames: Vec<Value> = received.try_iter().filter_map(|line| serde_json::from_slice(&line).ok()).collect();
        if let Some(opening) = frames.iter().find(|frame| frame["kind"] == "result") {
            answer = answer.map(|_| opening["result"].clone());
        }
        let items = frames.into_iter().filter(|frame| frame["kind"] == "item").map(|mut frame| {
            for name in ["kind", "id"] {
                frame.as_object_mut().expect("an object").remove(name);
            }
            frame
        });
        (answer, items.collect())
    }

    fn hello(&self) -> Value {
        let mut capabilities: BTreeSet<&str> = self.handlers.keys().map(String::as_str).collect();
        capabilities.insert("plugin.register"); // answered here if not by a handler
        let mut hello = json!({
            "abi": [1], "schema": 1, "plugin": self.id, "version": self.version, "features": FEATURES,
            "capabilities": capabilities,
        });
        for (name, table) in [("inputs", &self.inputs), ("on_error", &self.on_error)] {
            if !table.is_empty() {
                hello[name] = json!(table);
            }
        }
        hello
    }
}

/// One call of the host.
pub struct Call {
    pub id: i64,
    pub method: String,
    pub params: Value,
    /// Whether the caller can take a stream.
    pub stream: bool,
    session: Arc<Session>,
}

/// What the reader knows of a call in progress.
struct Progress {
    cancelled: bool,
    opened: bool,
    usage: Option<Value>,
    items: i64,
    bytes: i64,
}

impl Call {
    fn new(session: &Arc<Session>, frame: &Value) -> Call {
        let (id, method) = (frame["id"].as_i64().unwrap_or(0), frame["method"].as_str().unwrap_or("").to_string());
        let progress =
            Progress { cancelled: false, opened: false, usage: None, items: WINDOW_ITEMS, bytes: WINDOW_BYTES };
        session.state().calls.insert(id, progress);
        let stream = frame["stream"] == true;
        Call { id, method, params: frame["params"].clone(), stream, session: session.clone() }
    }

    /// The plugin's section of the configuration.
    pub fn config(&self) -> Value {
        self.session.state().config.clone()
    }

    /// Whether the answer is no longer wanted: the client is gone, or the deadline has passed.
    pub fn cancelled(&self) -> bool {
        self.progress(|progress| progress.cancelled)
    }

    /// Write a structured line into the host's log, as part of this call.
    pub fn log(&self, level: &str, event: &str, fields: Value) {
        let line = json!({"level": level, "event": event, "fields": fields, "parent": self.id});
        self.session.send("log", 0, line).ok();
    }

    /// Token counts for the closing frame.
    pub fn usage(&self, usage: Value) {
        self.progress(|progress| progress.usage = Some(usage));
    }

    /// Begin a stream. The result is the answer without a body.
    pub fn open(&self, result: Value) -> Result<(), Error> {
        if !self.stream {
            return Err(Error::new(500, "plugin_error", "the caller takes no stream"));
        }
        if self.cancelled() {
            return Err(Error::cancelled());
        }
        self.progress(|progress| progress.opened = true);
        self.session.send("result", self.id, json!({"ok": true, "stream": true, "result": result}))
    }

    /// Send one element of the stream, such as `json!({"body": json_body(event)})`. Waits while the reader is slower;
    /// fails when the call was cancelled: return that error, `?` does.
    pub fn item(&self, item: Value) -> Result<(), Error> {
        let line = encode("item", self.id, item);
        let session = &self.session;
        let mut state = session.state();
        loop {
            let has_credit = state.has("credit");
            let progress = state.calls.get_mut(&self.id).expect("a call in progress");
            if progress.cancelled {
                return Err(Error::cancelled());
            }
            if !has_credit || (progress.items > 0 && progress.bytes > 0) {
                progress.items -= 1;
                progress.bytes -= line.len() as i64;
                break;
            }
            state = session.changed.wait(state).expect("no panic while locked");
        }
        drop(state);
        session.write(&line)
    }

    /// Call the host, `host.kv.get` say. The plugin needs the method's permission.
    pub fn host(&self, method: &str, params: Value) -> Answer {
        Ok(self.ask(method, params, false)?.0)
    }

    /// Call a method of the host that answers with a stream, such as `host.http.do_stream`: its result and its items,
    /// an iterator. Dropping the items ends the stream.
    pub fn host_stream(&self, method: &str, params: Value) -> Result<(Value, Items), Error> {
        self.ask(method, params, true)
    }

    fn ask(&self, method: &str, params: Value, stream: bool) -> Result<(Value, Items), Error> {
        let (sender, arrived) = channel();
        let asking = self.session.asking.lock().expect("no panic while locked"); // ids have to grow on the wire
        let id = self.session.state().expect_answer(sender, self.id);
        let mut items = Items { id, open: false, arrived, session: self.session.clone() };
        let mut call = json!({"method": method, "params": params, "parent": self.id});
        if stream {
            call["stream"] = json!(true);
        }
        self.session.send("call", id, call)?;
        drop(asking);
        let opening = items.receive()?;
        if opening["ok"] != true {
            return Err(Error::of(&opening));
        }
        items.open = opening["stream"] == true;
        Ok((opening["result"].clone(), items))
    }

    fn progress<T>(&self, look: impl FnOnce(&mut Progress) -> T) -> T {
        look(self.session.state().calls.get_mut(&self.id).expect("a call in progress"))
    }

    fn answer(&self) -> Answer {
        let plugin = &self.session.plugin;
        match plugin.handlers.get(&self.method) {
            Some(handler) => catch_unwind(AssertUnwindSafe(|| handler(self)))
                .unwrap_or_else(|_| Err(Error::new(500, "plugin_error", &format!("{} panicked", self.method)))),
            None if is_registration(&self.method) => Ok(Value::Null),
            None => Err(Error::new(500, "method_not_found", &format!("{} has no {}", plugin.id, self.method))),
        }
    }

    /// Answer with the one closing frame.
    fn run(self) {
        let answer = self.answer();
        let progress = self.session.state().calls.remove(&self.id).expect("a call in progress");
        let mut closing = json!({"ok": true});
        if let Some(usage) = progress.usage {
            closing["usage"] = usage;
        }
        let kind = if progress.opened { "end" } else { "result" };
        let mut failed = closing.clone();
        let sent = answer.and_then(|result| {
            if !progress.opened {
                closing["result"] = result;
            }
            self.session.send(kind, self.id, closing)
        });
        if let Err(error) = sent {
            failed["ok"] = json!(false);
            failed["error"] = Value::Object(error.0);
            self.session.send(kind, self.id, failed).ok();
        }
    }
}

/// The elements of a stream of the host, as `{"event"?, "body"}` or `{"raw"}`.
pub struct Items {
    id: i64,
    open: bool,
    arrived: Receiver<(Value, usize)>,
    session: Arc<Session>,
}

impl Items {
    fn receive(&self) -> Answer {
        let (frame, size) = self.arrived.recv().map_err(|_| Error::cancelled())?;
        if frame["kind"] == "item" {
            self.session.send("credit", self.id, json!({"items": 1, "bytes": size}))?;
        }
        Ok(frame)
    }
}

impl Iterator for Items {
    type Item = Answer;

    fn next(&mut self) -> Option<Answer> {
        if !self.open {
            return None;
        }
        match self.receive() {
            Ok(frame) if frame["kind"] == "item" => return Some(Ok(frame)),
            Ok(frame) if frame["ok"] == true => self.open = false,
            Ok(frame) => {
                self.open = false;
                return Some(Err(Error::of(&frame)));
            }
            Err(error) => {
                self.open = false;
                return Some(Err(error));
            }
        }
        None
    }
}

impl Drop for Items {
    fn drop(&mut self) {
        let mut state = self.session.state();
        let unfinished = state.asked.remove(&self.id).is_some() && state.has("cancel");
        drop(state);
        if unfinished {
            self.session.send("cancel", self.id, json!({"reason": "client_gone"})).ok();
        }
    }
}

/// One conversation with a host.
struct Session {
    plugin: Arc<Plugin>,
    state: Mutex<State>,
    changed: Condvar,
    asking: Mutex<()>,
    out: Mutex<Box<dyn Write + Send>>,
}

struct State {
    features: Vec<String>,
    out_max: usize,
    config: Value,
    calls: HashMap<i64, Progress>,
    asked: HashMap<i64, (Sender<(Value, usize)>, i64)>,
    last_id: i64,
}

impl State {
    fn has(&self, feature: &str) -> bool {
        self.features.iter().any(|theirs| theirs == feature)
    }

    fn expect_answer(&mut self, sender: Sender<(Value, usize)>, parent: i64) -> i64 {
        self.last_id += 1;
        self.asked.insert(self.last_id, (sender, parent));
        self.last_id
    }
}

impl Session {
    fn new(plugin: &Arc<Plugin>, out: Box<dyn Write + Send>) -> Arc<Session> {
        let (features, calls, asked) = Default::default();
        let state = State { features, out_max: MAX_FRAME, config: json!({}), calls, asked, last_id: 0 };
        let (state, out) = (Mutex::new(state), Mutex::new(out));
        Arc::new(Session { plugin: plugin.clone(), state, changed: Condvar::new(), asking: Mutex::new(()), out })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no panic while locked")
    }

    /// Route frames until the host closes its side. Never waits for a handler.
    fn read(self: &Arc<Session>, input: impl Read) {
        let mut lines = BufReader::with_capacity(64 << 10, input);
        while let Ok(Some((line, whole))) = read_line(&mut lines) {
            if !whole {
                self.refuse(&line, Error::new(413, "plugin_body_too_large", "a frame above the limit"));
            } else if !line.is_empty() {
                match serde_json::from_slice(&line) {
                    Ok(frame) => self.route(frame, line.len()),
                    Err(error) => self.refuse(&line, Error::new(500, "plugin_protocol_error", &error.to_string())),
                }
            }
        }
        let mut state = self.state();
        state.calls.values_mut().for_each(|progress| progress.cancelled = true);
        state.asked.clear();
        self.changed.notify_all();
    }

    fn route(self: &Arc<Session>, frame: Value, size: usize) {
        let id = frame["id"].as_i64().unwrap_or(0);
        match frame["kind"].as_str().unwrap_or("") {
            "hello" => self.greet(&frame),
            "call" => self.start(&frame),
            "cancel" => {
                let mut state = self.state();
                if let Some(progress) = state.calls.get_mut(&id) {
                    progress.cancelled = true;
                }
                // Whoever waits for an answer of the host on behalf of this call need not wait any more.
                state.asked.retain(|_, (_, parent)| *parent != id);
                self.changed.notify_all();
            }
            "credit" => {
                if let Some(progress) = self.state().calls.get_mut(&id) {
                    progress.items += frame["items"].as_i64().unwrap_or(0).max(0);
                    progress.bytes += frame["bytes"].as_i64().unwrap_or(0).max(0);
                }
                self.changed.notify_all();
            }
            "ping" => drop(self.send("pong", id, json!({}))),
            kind @ ("result" | "item" | "end") => {
                let mut state = self.state();
                let is_last = kind == "end" || kind == "result" && frame["stream"] != true;
                if let Some((sender, _)) = state.asked.get(&id) {
                    sender.send((frame, size)).ok();
                }
                if is_last {
                    state.asked.remove(&id);
                }
            }
            _ => {} // goaway asks nothing of us, and unknown kinds are for later versions
        }
    }

    fn greet(&self, host: &Value) {
        let mut state = self.state();
        let theirs = host["features"].as_array().cloned().unwrap_or_default();
        state.features =
            FEATURES.iter().filter(|name| theirs.contains(&json!(name))).map(|it| it.to_string()).collect();
        state.out_max = host["limits"]["max_frame_bytes"].as_u64().map_or(MAX_FRAME, |bytes| bytes as usize);
        drop(state);
        self.send("hello", 0, self.plugin.hello()).ok();
    }

    fn start(self: &Arc<Session>, frame: &Value) {
        let call = Call::new(self, frame);
        if is_registration(&call.method) {
            self.state().config = call.params["config"].clone();
        }
        thread::spawn(move || call.run());
    }

    /// Answer a call that cannot be read; other frames of that sort are dropped.
    fn refuse(&self, line: &[u8], error: Error) {
        eprintln!("unusable frame: {}", error);
        let head = String::from_utf8_lossy(&line[..line.len().min(HEAD_BYTES)]).into_owned();
        let digits = head.split("\"id\":").nth(1).unwrap_or("").trim_start();
        let id = digits.split(|letter: char| !letter.is_ascii_digit()).next().unwrap_or("").parse();
        if let (Ok(id), true) = (id, head.contains("\"call\"")) {
            self.send("result", id, json!({"ok": false, "error": error.0})).ok();
        }
    }

    fn send(&self, kind: &str, id: i64, fields: Value) -> Result<(), Error> {
        self.write(&encode(kind, id, fields))
    }

    fn write(&self, line: &str) -> Result<(), Error> {
        if line.len() > self.state().out_max {
            return Err(Error::new(413, "plugin_body_too_large", &format!("a frame of {} bytes", line.len())));
        }
        let mut out = self.out.lock().expect("no panic while locked");
        out.write_all(format!("{line}\n").as_bytes())?;
        Ok(out.flush()?)
    }
}

/// A line: kind and id first, so that they can be read from the start of one that is too long.
fn encode(kind: &str, id: i64, fields: Value) -> String {
    let rest = fields.to_string();
    let id = if id > 0 { format!(",\"id\":{id}") } else { String::new() };
    let comma = if rest == "{}" { "" } else { "," };
    format!("{{\"kind\":\"{kind}\"{id}{comma}{}", &rest[1..])
}

/// One line without its end; of a line above the limit only the head.
fn read_line(lines: &mut impl BufRead) -> io::Result<Option<(Vec<u8>, bool)>> {
    let (mut line, mut whole) = (Vec::new(), true);
    loop {
        let part = lines.fill_buf()?;
        if part.is_empty() {
            return Ok(None);
        }
        let end = part.iter().position(|byte| *byte == b'\n');
        let taken = end.map_or(part.len(), |at| at + 1);
        if line.len() + taken > MAX_FRAME + 2 {
            whole = false;
            line.truncate(HEAD_BYTES);
        }
        if whole {
            line.extend_from_slice(&part[..taken]);
        }
        lines.consume(taken);
        if end.is_some() {
            while matches!(line.last(), Some(b'\n' | b'\r')) {
                line.pop();
            }
            return Ok(Some((line, whole)));
        }
    }
}

fn is_registration(method: &str) -> bool {
    method == "plugin.register" || method == "plugin.reconfigure"
}

/// Serve one gateway after the other at a socket of this user, for a debugger.
fn listen(plugin: &Arc<Plugin>, path: &str) -> io::Result<()> {
    std::fs::remove_file(path).ok();
    let listener = UnixListener::bind(path)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
    loop {
        eprintln!("{}: listening on unix:{}", plugin.id, path);
        let (connection, _) = listener.accept()?;
        Session::new(plugin, Box::new(connection.try_clone()?)).read(connection);
    }
}

extern "C" {
    fn isatty(fd: i32) -> i32;
    fn dup(fd: i32) -> i32;
    fn dup2(from: i32, to: i32) -> i32;
}

fn is_terminal() -> bool {
    unsafe { isatty(0) == 1 }
}

/// The wire; what anybody prints goes to stderr from now on and does not get between the frames.
fn claim_stdout() -> std::fs::File {
    unsafe {
        let wire = std::fs::File::from_raw_fd(dup(1));
        dup2(2, 1);
        wire
    }
}

struct Collector(Sender<Vec<u8>>);

impl Write for Collector {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.send(bytes.to_vec()).ok();
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
