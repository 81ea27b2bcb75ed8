package main

import (
	"encoding/json"
	"testing"

	"jackfield-plugin/jackfield"
)

func TestABudgetBecomesAnEffortTheModelTakes(t *testing.T) {
	for _, row := range []struct {
		asked     thinking
		supported []string
		effort    string
	}{
		{thinking{Mode: "level", Level: "high"}, nil, "high"},
		{thinking{Mode: "level", Level: "max"}, []string{"low", "high"}, "high"},
		{thinking{Mode: "level", Level: "minimal"}, []string{"low", "high"}, "low"},
		{thinking{Mode: "budget", Budget: 1000}, nil, "low"},
		{thinking{Mode: "budget", Budget: 8192}, nil, "medium"},
		{thinking{Mode: "budget", Budget: 20000}, nil, "high"},
		{thinking{Mode: "none"}, nil, "none"},
		{thinking{Mode: "auto"}, nil, ""},
	} {
		if effort := effortOf(row.asked, row.supported); effort != row.effort {
			t.Errorf("%+v of %v: %q instead of %q", row.asked, row.supported, effort, row.effort)
		}
	}
}

func TestTheEffortIsWrittenIntoTheBody(t *testing.T) {
	params := jackfield.Object{
		"config": jackfield.Object{"mode": "level", "level": "high"},
		"body":   jackfield.JSON(jackfield.Object{"model": "m"}),
	}
	answer, _, err := plugin.Try("thinking.apply", params, nil)
	text, _ := json.Marshal(answer)
	if err != nil || string(text) != `{"body":{"json":{"model":"m","reasoning_effort":"high"}}}` {
		t.Error(string(text), err)
	}
}
