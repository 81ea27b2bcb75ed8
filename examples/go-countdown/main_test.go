package main

import (
	"fmt"
	"strings"
	"testing"

	"jackfield-plugin/jackfield"
)

func ask(text string) jackfield.Object {
	message := jackfield.Object{"role": "user", "content": text}
	return jackfield.Object{"body": jackfield.JSON(jackfield.Object{"messages": []any{message}})}
}

func TestTheWholeAnswerCountsToZero(t *testing.T) {
	answer, _, err := plugin.Try("executor.execute", ask("from 3"), nil)
	if text := fmt.Sprint(answer); err != nil || !strings.Contains(text, "content:3 2 1 0 ") {
		t.Error(text, err)
	}
}

func TestAStreamHasOneItemForEachNumberAndOneForTheEnd(t *testing.T) {
	_, items, err := plugin.Try("executor.execute_stream", ask("from 3"), jackfield.Object{"pause_ms": 0})
	if err != nil || len(items) != 5 {
		t.Error(items, err)
	}
}

func TestANumberThatIsTooLargeHasAStatusOfItsOwn(t *testing.T) {
	_, _, err := plugin.Try("executor.execute", ask("from 100001"), nil)
	if err == nil || err.(*jackfield.Error).HTTPStatus != 422 {
		t.Error(err)
	}
}
