// A thinking applier in Go, without any SDK: what `model(high)` or `model(8192)` asks for becomes `reasoning_effort` in
// the body of an OpenAI-compatible upstream.
package main

import (
	"encoding/json"

	"jackfield-plugin/jackfield"
)

// levels are the efforts the protocol knows, weakest first.
var levels = []string{"minimal", "low", "medium", "high", "xhigh", "max"}

var plugin = jackfield.Plugin{
	ID: "go-thinking", Version: "1.0.0",
	Handlers: map[string]jackfield.Handler{"plugin.register": register, "thinking.apply": apply},
}

func main() {
	jackfield.Serve(plugin)
}

func register(call *jackfield.Call) (any, error) {
	config := struct{ Provider string }{"openai"}
	if err := call.Config(&config); err != nil {
		return nil, err
	}
	return jackfield.Object{"thinking_provider": config.Provider}, nil
}

type request struct {
	Model struct {
		Thinking struct{ Levels []string }
	}
	Config thinking
	Body   *jackfield.Body
}

type thinking struct {
	Mode   string
	Budget int
	Level  string
}

func apply(call *jackfield.Call) (any, error) {
	var asked request
	if err := call.Decode(&asked); err != nil {
		return nil, err
	}
	var body map[string]json.RawMessage
	if err := asked.Body.Decode(&body); err != nil {
		return nil, jackfield.Fail(400, "invalid_body", "the body is no JSON object: "+err.Error())
	}
	effort := effortOf(asked.Config, asked.Model.Thinking.Levels)
	call.Log("info", "thinking.applied", jackfield.Object{"mode": asked.Config.Mode, "effort": effort})
	if effort == "" {
		delete(body, "reasoning_effort") // the upstream decides
	} else {
		body["reasoning_effort"], _ = json.Marshal(effort)
	}
	return jackfield.Object{"body": jackfield.JSON(body)}, nil
}

// effortOf is the strongest effort the model takes that is not above what was asked for.
func effortOf(asked thinking, supported []string) string {
	level := asked.Level
	switch {
	case asked.Mode == "auto":
		return ""
	case asked.Mode == "none":
		return "none"
	case asked.Mode == "budget" && asked.Budget <= 1024:
		level = "low"
	case asked.Mode == "budget" && asked.Budget <= 8192:
		level = "medium"
	case asked.Mode == "budget":
		level = "high"
	}
	if len(supported) == 0 {
		return level
	}
	best := ""
	for rank := range levels {
		name := levels[rank]
		if contains(supported, name) && (best == "" || rank <= index(level)) {
			best = name
		}
	}
	return best
}

func index(level string) int {
	for rank, name := range levels {
		if name == level {
			return rank
		}
	}
	return len(levels)
}

func contains(names []string, name string) bool {
	for _, known := range names {
		if known == name {
			return true
		}
	}
	return false
}
