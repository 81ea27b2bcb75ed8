// Package jackfield speaks the Jackfield plugin protocol, ABI 1: one JSON object per line, over stdin and stdout.
//
// It needs nothing but the standard library and is part of your plugin: read it, change it. The names of methods and
// fields are those of the protocol's page, proto/README.md of Jackfield.
package jackfield

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"regexp"
	"runtime/debug"
	"sort"
	"strconv"
	"strings"
	"sync"
)

const (
	maxFrame    = 16 << 20 // bytes of a line, until a hello says otherwise
	headBytes   = 4096     // the id of a line that is too long stands within its first bytes
	windowItems = 32       // credit of a new stream
	windowBytes = 1 << 20
	queueItems  = windowItems + 8
	exitUsage   = 64
)

// Plugin is what Serve needs to know; ID and Version are those of plugin.toml.
type Plugin struct {
	ID, Version string
	Handlers    map[string]Handler  // by method: {"model.route": route}
	Inputs      map[string][]string // what a method wants to see: {"model.route": {"body:/tools"}}
	OnError     map[string]string   // "fail" or "skip" by method
}

// Handler answers one call, in a goroutine of its own. A nil answer means no opinion, or no change.
// An *Error reaches the client with its status; any other error is a 500.
type Handler func(call *Call) (any, error)

// Object is a JSON object.
type Object = map[string]any

// Body is a request's or an answer's body; one member is set.
type Body struct {
	JSON   json.RawMessage `json:"json,omitempty"`
	Text   *string         `json:"text,omitempty"`
	Base64 []byte          `json:"base64,omitempty"`
}

// Bytes returns what the body says, in whichever form it came.
func (body *Body) Bytes() []byte {
	switch {
	case body == nil:
		return nil
	case body.JSON != nil:
		return body.JSON
	case body.Text != nil:
		return []byte(*body.Text)
	}
	return body.Base64
}

// Decode reads a JSON body.
func (body *Body) Decode(into any) error { return json.Unmarshal(body.Bytes(), into) }

// JSON makes a body of a value for an answer. A json.RawMessage stays as it is.
func JSON(value any) Object { return Object{"json": value} }

// Error is the protocol's error object; all but Message may be left out.
type Error struct {
	Message      string              `json:"message"`
	Code         string              `json:"code,omitempty"`
	HTTPStatus   int                 `json:"http_status,omitempty"` // 400 to 599
	Retryable    *bool               `json:"retryable,omitempty"`
	RetryAfterMS *int                `json:"retry_after_ms,omitempty"`
	Scope        string              `json:"scope,omitempty"`
	Headers      map[string][]string `json:"headers,omitempty"`
	Body         *Body               `json:"body,omitempty"`
	BodyProtocol string              `json:"body_protocol,omitempty"`
	Origin       string              `json:"origin,omitempty"`
	Details      Object              `json:"details,omitempty"`
}

func (e *Error) Error() string { return e.Message }

func (e *Error) orUnknown() error {
	if e == nil {
		return Fail(500, "plugin_error", "plugin call failed")
	}
	return e
}

// Fail makes an error.
func Fail(status int, code, message string) *Error {
	return &Error{Message: message, Code: code, HTTPStatus: status}
}

// Call is one call of the host; use it until the handler returns.
type Call struct {
	ID     int64
	Method string
	Params json.RawMessage
	Stream bool // whether the caller can take a stream
	Usage  any  // for the closing frame: Object{"input_tokens": 1, "output_tokens": 2}

	session    *session
	context    context.Context
	cancel     context.CancelFunc
	opened     bool
	creditOf   int // items and bytes that may still be sent; guarded by the session's mutex
	creditSize int
}

// Context is cancelled when the answer is no longer wanted: the client is gone, or the deadline has passed.
func (call *Call) Context() context.Context { return call.context }

// Decode reads the params into a struct that has the fields you need, and the configuration into another one if given.
func (call *Call) Decode(params any, config ...any) error {
	err := json.Unmarshal(call.Params, params)
	for _, into := range config {
		if err == nil {
			err = call.Config(into)
		}
	}
	return err
}

// Config reads the plugin's section of the configuration; fields that are not configured keep their value.
func (call *Call) Config(into any) error {
	call.session.mutex.Lock()
	defer call.session.mutex.Unlock()
	return json.Unmarshal(call.session.config, into)
}

// Log writes a structured line into the host's log, as part of this call.
func (call *Call) Log(level, event string, fields Object) {
	call.session.send("log", 0, Object{"level": level, "event": event, "fields": fields, "parent": call.ID})
}

// Open begins a stream. The result is the answer without a body.
func (call *Call) Open(result any) error {
	if !call.Stream {
		return Fail(500, "plugin_error", "the caller of "+call.Method+" takes no stream")
	}
	if err := call.context.Err(); err != nil {
		return err
	}
	call.opened = true
	return call.session.send("result", call.ID, Object{"ok": true, "stream": true, "result": result})
}

// Item sends one element of the stream, such as Object{"body": JSON(event)}. It waits while the reader is slower, and
// fails when the call was cancelled: return that error.
func (call *Call) Item(item Object) error {
	session := call.session
	line, err := encode("item", call.ID, item)
	if err != nil {
		return err
	}
	session.mutex.Lock()
	for session.has["credit"] && (call.creditOf <= 0 || call.creditSize <= 0) && call.context.Err() == nil {
		session.changed.Wait()
	}
	call.creditOf, call.creditSize = call.creditOf-1, call.creditSize-len(line)
	session.mutex.Unlock()
	if err := call.context.Err(); err != nil {
		return err
	}
	return session.write(line)
}

// Host calls the host, "host.kv.get" say, and reads its answer. The plugin needs the method's permission.
func (call *Call) Host(method string, params, answer any) error {
	items, err := call.ask(method, params, answer, false)
	if err == nil {
		items.Close()
	}
	return err
}

// HostStream calls a method of the host that answers with a stream, such as "host.http.do_stream". Close the items.
func (call *Call) HostStream(method string, params, answer any) (*Items, error) {
	return call.ask(method, params, answer, true)
}

func (call *Call) ask(method string, params, answer any, stream bool) (*Items, error) {
	session := call.session
	items := &Items{call: call, arrived: make(chan frame, queueItems)}
	session.asking.Lock() // ids have to grow on the wire
	session.mutex.Lock()
	session.lastID++
	items.id = session.lastID
	session.asked[items.id] = items
	session.mutex.Unlock()
	fields := Object{"method": method, "params": params, "parent": call.ID}
	if stream {
		fields["stream"] = true
	}
	err := session.send("call", items.id, fields)
	session.asking.Unlock()
	var opening frame
	if err == nil {
		opening, err = items.receive()
	}
	if err == nil && !opening.OK {
		err = opening.Error.orUnknown()
	}
	if err == nil && answer != nil && opening.Result != nil {
		err = json.Unmarshal(opening.Result, answer)
	}
	if items.open = opening.Stream; err != nil {
		items.Close()
		return nil, err
	}
	return items, nil
}

// Items are the elements of a stream of the host.
type Items struct {
	call    *Call
	id      int64
	open    bool
	arrived chan frame
}

// Item is one element: an event with its body, or raw data.
type Item struct {
	Event     string
	Body, Raw *Body
}

// Next returns the next item, io.EOF at the end, or the error that ended the stream.
func (items *Items) Next() (*Item, error) {
	if !items.open {
		return nil, io.EOF
	}
	next, err := items.receive()
	if err != nil {
		return nil, err
	}
	if next.Kind == "item" {
		return &Item{next.Event, next.Body, next.Raw},
			items.call.session.send("credit", items.id, Object{"items": 1, "bytes": next.size})
	}
	items.open = false
	if next.OK {
		return nil, io.EOF
	}
	return nil, next.Error.orUnknown()
}

// Close ends the stream, also half-way. It may be called again.
func (items *Items) Close() {
	session := items.call.session
	session.mutex.Lock()
	_, unfinished := session.asked[items.id]
	delete(session.asked, items.id)
	session.mutex.Unlock()
	if items.open = false; unfinished && session.has["cancel"] {
		session.send("cancel", items.id, Object{"reason": "client_gone"})
	}
}

func (items *Items) receive() (frame, error) {
	select {
	case next := <-items.arrived:
		return next, nil
	case <-items.call.context.Done():
		return frame{}, items.call.context.Err()
	}
}

// Serve talks to the host until it has had enough; it does not return.
func Serve(plugin Plugin) {
	if len(os.Args) > 1 && os.Args[1] == "--describe" {
		line, _ := encode("hello", 0, plugin.hello())
		os.Stdout.Write(append(line, '\n'))
		os.Exit(0)
	}
	if len(os.Args) > 2 && os.Args[1] == "--listen" {
		plugin.listen(strings.TrimPrefix(os.Args[2], "unix:"))
	}
	if info, err := os.Stdin.Stat(); err == nil && info.Mode()&os.ModeCharDevice != 0 {
		fmt.Fprintf(os.Stderr, "%s is a plugin of the Jackfield gateway, which starts it itself; "+
			"--describe says what it does, --listen unix:PATH waits for a gateway with JACKFIELD_ATTACH.\n", plugin.ID)
		os.Exit(exitUsage)
	}
	wire := os.Stdout
	os.Stdout = os.Stderr // what anybody prints must not get between the frames
	newSession(plugin, wire).read(os.Stdin)
	os.Exit(0)
}

// listen serves one gateway after the other at a socket of this user, for a debugger.
func (plugin Plugin) listen(path string) {
	os.Remove(path)
	listener, err := net.Listen("unix", path)
	if err == nil {
		err = os.Chmod(path, 0o600)
	}
	for err == nil {
		fmt.Fprintf(os.Stderr, "%s: listening on unix:%s\n", plugin.ID, path)
		var connection net.Conn
		if connection, err = listener.Accept(); err == nil {
			newSession(plugin, connection).read(connection)
			connection.Close()
		}
	}
	fmt.Fprintln(os.Stderr, err)
	os.Exit(1)
}

func (plugin Plugin) hello() Object {
	capabilities := []string{"plugin.register"} // answered here if not by a handler
	for method := range plugin.Handlers {
		if method != capabilities[0] {
			capabilities = append(capabilities, method)
		}
	}
	sort.Strings(capabilities)
	hello := Object{
		"abi": []int{1}, "schema": 1, "plugin": plugin.ID, "version": plugin.Version, "capabilities": capabilities,
		"features": []string{"cancel", "credit", "ping", "goaway", "callback_streams"},
	}
	if plugin.Inputs != nil {
		hello["inputs"] = plugin.Inputs
	}
	if plugin.OnError != nil {
		hello["on_error"] = plugin.OnError
	}
	return hello
}

// frame has the members of all kinds that are read here.
type frame struct {
	Kind     string          `json:"kind"`
	ID       int64           `json:"id"`
	OK       bool            `json:"ok"`
	Stream   bool            `json:"stream"`
	Result   json.RawMessage `json:"result"`
	Error    *Error          `json:"error"`
	Method   string          `json:"method"`
	Params   json.RawMessage `json:"params"`
	Event    string          `json:"event"`
	Body     *Body           `json:"body"`
	Raw      *Body           `json:"raw"`
	Items    int             `json:"items"`
	Bytes    int             `json:"bytes"`
	Features []string        `json:"features"`
	Limits   struct {
		MaxFrame int `json:"max_frame_bytes"`
	} `json:"limits"`
	size int
}

// session is one conversation with a host.
type session struct {
	plugin Plugin
	has    map[string]bool // features of both sides; set once
	outMax int             // bytes of a line the host accepts; set once

	writing sync.Mutex
	out     io.Writer
	asking  sync.Mutex

	mutex   sync.Mutex // guards what follows
	changed *sync.Cond
	config  json.RawMessage
	calls   map[int64]*Call
	asked   map[int64]*Items
	lastID  int64
}

func newSession(plugin Plugin, out io.Writer) *session {
	session := &session{plugin: plugin, out: out, outMax: maxFrame, has: map[string]bool{}, config: []byte("{}"),
		calls: map[int64]*Call{}, asked: map[int64]*Items{}}
	session.changed = sync.NewCond(&session.mutex)
	return session
}

// read routes frames until the host closes its side. It never waits for a handler.
func (session *session) read(in io.Reader) {
	lines := bufio.NewReaderSize(in, 64<<10)
	for {
		line, whole, err := readLine(lines)
		if err != nil {
			session.end()
			return
		}
		next := frame{size: len(line)}
		if !whole {
			session.refuse(line, Fail(413, "plugin_body_too_large", "a frame above the limit"))
		} else if err := json.Unmarshal(line, &next); err != nil && len(line) > 0 {
			session.refuse(line, Fail(500, "plugin_protocol_error", err.Error()))
		} else {
			session.route(next)
		}
	}
}

// readLine returns one line without its end; of a line above the limit only the head.
func readLine(lines *bufio.Reader) (line []byte, whole bool, err error) {
	whole = true
	for {
		part, err := lines.ReadSlice('\n')
		if len(line)+len(part) > maxFrame+2 {
			whole, line = false, line[:headBytes:headBytes]
		} else if whole {
			line = append(line, part...)
		}
		if err == nil {
			return bytes.TrimRight(line, "\r\n"), whole, nil
		} else if !errors.Is(err, bufio.ErrBufferFull) {
			return nil, false, err
		}
	}
}

var idOfHead = regexp.MustCompile(`"id"\s*:\s*(\d+)`)

// refuse answers a call that cannot be read; other frames of that sort are dropped.
func (session *session) refuse(line []byte, problem *Error) {
	fmt.Fprintln(os.Stderr, "unusable frame:", problem.Message)
	if len(line) > headBytes {
		line = line[:headBytes]
	}
	found := idOfHead.FindSubmatch(line)
	if found != nil && bytes.Contains(line, []byte(`"call"`)) {
		id, _ := strconv.ParseInt(string(found[1]), 10, 64)
		session.send("result", id, Object{"ok": false, "error": problem})
	}
}

func (session *session) route(next frame) {
	session.mutex.Lock()
	defer session.mutex.Unlock()
	switch next.Kind {
	case "hello":
		session.greet(next)
	case "call":
		session.start(next)
	case "cancel":
		if call := session.calls[next.ID]; call != nil {
			call.cancel()
			session.changed.Broadcast()
		}
	case "credit":
		if call := session.calls[next.ID]; call != nil {
			call.creditOf, call.creditSize = call.creditOf+next.Items, call.creditSize+next.Bytes
			session.changed.Broadcast()
		}
	case "ping":
		go session.send("pong", next.ID, nil)
	case "result", "item", "end": // of our own calls
		if items := session.asked[next.ID]; items != nil {
			if next.Kind == "end" || next.Kind == "result" && !next.Stream {
				delete(session.asked, next.ID)
			}
			items.arrived <- next // never full: the host has no more credit than there is room
		}
	} // goaway asks nothing of us, and unknown kinds are for later versions
}

func (session *session) greet(host frame) {
	hello := session.plugin.hello()
	for _, feature := range hello["features"].([]string) {
		for _, theirs := range host.Features {
			session.has[feature] = session.has[feature] || feature == theirs
		}
	}
	if host.Limits.MaxFrame > 0 {
		session.outMax = host.Limits.MaxFrame
	}
	session.send("hello", 0, hello)
}

func (session *session) start(next frame) {
	call := session.newCall(next)
	session.calls[call.ID] = call
	go session.run(call, session.handler(call))
}

func (session *session) newCall(next frame) *Call {
	call := &Call{ID: next.ID, Method: next.Method, Params: next.Params, Stream: next.Stream, session: session,
		creditOf: windowItems, creditSize: windowBytes}
	if call.Params == nil {
		call.Params = []byte("{}")
	}
	call.context, call.cancel = context.WithCancel(context.Background())
	return call
}

// handler finds who answers a call; the configuration of a registration is kept in any case.
func (session *session) handler(call *Call) Handler {
	handler := session.plugin.Handlers[call.Method]
	request := struct{ Config json.RawMessage }{[]byte("{}")}
	if call.Method == "plugin.register" || call.Method == "plugin.reconfigure" {
		json.Unmarshal(call.Params, &request)
		session.config = request.Config
		if handler == nil {
			return func(*Call) (any, error) { return nil, nil }
		}
	}
	if handler == nil {
		return func(*Call) (any, error) {
			return nil, Fail(500, "method_not_found", session.plugin.ID+" has no "+call.Method)
		}
	}
	return handler
}

// run gives every call its one closing frame.
func (session *session) run(call *Call, handler Handler) {
	answer, err := guarded(call, handler)
	kind, fields := "result", Object{"ok": true}
	if call.opened {
		kind = "end"
	} else if answer != nil {
		fields["result"] = answer
	}
	if call.Usage != nil {
		fields["usage"] = call.Usage
	}
	if err == nil {
		err = session.send(kind, call.ID, fields)
	}
	if err != nil {
		delete(fields, "result")
		fields["ok"], fields["error"] = false, errorOf(err)
		session.send(kind, call.ID, fields)
	}
	session.mutex.Lock()
	delete(session.calls, call.ID)
	session.mutex.Unlock()
	call.cancel()
}

func guarded(call *Call, handler Handler) (answer any, err error) {
	defer func() {
		if problem := recover(); problem != nil {
			fmt.Fprintf(os.Stderr, "%s: panic: %v\n%s", call.Method, problem, debug.Stack())
			err = Fail(500, "plugin_error", fmt.Sprint("panic in ", call.Method))
		}
	}()
	return handler(call)
}

func errorOf(err error) *Error {
	var known *Error
	if errors.As(err, &known) {
		return known
	}
	if errors.Is(err, context.Canceled) {
		return Fail(499, "cancelled", "the call was cancelled")
	}
	return Fail(500, "plugin_error", err.Error())
}

func (session *session) end() {
	session.mutex.Lock()
	defer session.mutex.Unlock()
	for _, call := range session.calls {
		call.cancel()
	}
	session.changed.Broadcast()
}

// encode makes a line: kind and id first, so that they can be read from the start of one that is too long.
func encode(kind string, id int64, fields Object) ([]byte, error) {
	var line, rest bytes.Buffer
	encoder := json.NewEncoder(&rest)
	encoder.SetEscapeHTML(false)
	if err := encoder.Encode(fields); err != nil {
		return nil, err
	}
	fmt.Fprintf(&line, `{"kind":%q`, kind)
	if id > 0 {
		fmt.Fprintf(&line, `,"id":%d`, id)
	}
	if len(fields) > 0 {
		line.WriteByte(',')
	} else {
		rest.Reset()
		rest.WriteString("{}\n")
	}
	line.Write(rest.Bytes()[1 : rest.Len()-1])
	return line.Bytes(), nil
}

func (session *session) send(kind string, id int64, fields Object) error {
	line, err := encode(kind, id, fields)
	if err != nil {
		return err
	}
	return session.write(line)
}

func (session *session) write(line []byte) error {
	if len(line) > session.outMax {
		return Fail(413, "plugin_body_too_large", fmt.Sprint("a frame of ", len(line), " bytes"))
	}
	session.writing.Lock()
	defer session.writing.Unlock()
	_, err := session.out.Write(append(line, '\n'))
	return err
}

// Try calls a method as a host would, for tests: its answer and the items of its stream.
func (plugin Plugin) Try(method string, params, config any) (answer any, items []Object, err error) {
	var out bytes.Buffer
	session := newSession(plugin, &out)
	session.config, _ = json.Marshal(config)
	given, _ := json.Marshal(params)
	call := session.newCall(frame{ID: 1, Method: method, Params: given, Stream: true})
	answer, err = guarded(call, session.handler(call))
	for _, line := range bytes.Split(out.Bytes(), []byte("\n")) {
		var sent Object
		if json.Unmarshal(line, &sent); sent["kind"] == "item" {
			delete(sent, "kind")
			delete(sent, "id")
			items = append(items, sent)
		} else if sent["kind"] == "result" {
			answer = sent["result"]
		}
	}
	return answer, items, err
}
