// An executor in Go, without any SDK: a model that counts down, whole or number by number. It stops when its client
// leaves, waits for a slow one, and reports usage.
package main

import (
	"fmt"
	"regexp"
	"strconv"
	"strings"
	"time"

	"jackfield-plugin/jackfield"
)

const (
	model   = "countdown"
	begin   = 40 // when the message names no number
	highest = 100000
)

var plugin = jackfield.Plugin{
	ID: "go-countdown", Version: "1.0.0",
	Handlers: map[string]jackfield.Handler{
		"plugin.register":         register,
		"model.route":             route,
		"executor.execute":        execute,
		"executor.execute_stream": stream,
	},
}

func main() {
	jackfield.Serve(plugin)
}

func register(*jackfield.Call) (any, error) {
	openai := []string{"openai"}
	return jackfield.Object{"executor": jackfield.Object{"input_formats": openai, "output_formats": openai}}, nil
}

func route(call *jackfield.Call) (any, error) {
	var asked struct {
		Model string `json:"requested_model"`
	}
	if err := call.Decode(&asked); err != nil || asked.Model != model {
		return nil, err // no opinion: the next router decides
	}
	return jackfield.Object{"target_kind": "self", "reason": "this plugin is the model"}, nil
}

func execute(call *jackfield.Call) (any, error) {
	from, id, err := read(call)
	if err != nil {
		return nil, err
	}
	text := ""
	for number := from; number >= 0; number-- {
		text += strconv.Itoa(number) + " "
	}
	call.Usage = usage(from + 1)
	message := jackfield.Object{"role": "assistant", "content": strings.TrimSpace(text)}
	choice := jackfield.Object{"index": 0, "message": message, "finish_reason": "stop"}
	return jackfield.Object{"body": jackfield.JSON(answer(id, "chat.completion", choice))}, nil
}

func stream(call *jackfield.Call) (any, error) {
	from, id, err := read(call)
	if err != nil {
		return nil, err // nothing was sent yet: the client gets this status
	}
	config := struct {
		PauseMS int `json:"pause_ms"`
	}{5}
	if err := call.Config(&config); err != nil {
		return nil, err
	}
	if err := call.Open(nil); err != nil {
		return nil, err
	}
	for number := from; number >= 0; number-- {
		delta := jackfield.Object{"content": fmt.Sprintf("%d ", number)}
		if err := item(call, id, jackfield.Object{"index": 0, "delta": delta, "finish_reason": nil}); err != nil {
			return nil, err
		}
		call.Usage = usage(from + 1 - number) // of a stream that is cut short, too
		select {
		case <-time.After(time.Duration(config.PauseMS) * time.Millisecond):
		case <-call.Context().Done(): // the client left
			return nil, call.Context().Err()
		}
	}
	return nil, item(call, id, jackfield.Object{"index": 0, "delta": jackfield.Object{}, "finish_reason": "stop"})
}

func item(call *jackfield.Call, id string, choice jackfield.Object) error {
	return call.Item(jackfield.Object{"body": jackfield.JSON(answer(id, "chat.completion.chunk", choice))})
}

var digits = regexp.MustCompile(`\d+`)

// read finds the number in the request's last message.
func read(call *jackfield.Call) (from int, id string, err error) {
	var request struct {
		ID   string `json:"request_id"`
		Body *jackfield.Body
	}
	var chat struct {
		Messages []struct{ Content any }
	}
	if err = call.Decode(&request); err == nil {
		err = request.Body.Decode(&chat)
	}
	if err != nil {
		return 0, "", jackfield.Fail(400, "invalid_request", err.Error())
	}
	from = begin
	if len(chat.Messages) > 0 {
		if found := digits.FindString(fmt.Sprint(chat.Messages[len(chat.Messages)-1].Content)); found != "" {
			if from, err = strconv.Atoi(found); err != nil || from > highest {
				return 0, "", jackfield.Fail(422, "too_long", "nobody can count down from "+found)
			}
		}
	}
	return from, "countdown-" + request.ID, nil
}

func answer(id, kind string, choice jackfield.Object) jackfield.Object {
	return jackfield.Object{"id": id, "object": kind, "created": 0, "model": model, "choices": []any{choice}}
}

func usage(tokens int) jackfield.Object {
	return jackfield.Object{"input_tokens": 0, "output_tokens": tokens, "total_tokens": tokens}
}
