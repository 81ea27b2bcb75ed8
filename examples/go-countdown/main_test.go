package main

import (
	"strings"
	"testing"

	"jackfield-plugin/jackfield"
)

func ask(text string) jackfield.Object {
	message := jackfield.Object{"role": "user", "content": text}
	return jackfield.Object{"body": jackfield.JSON(jackfield.Object{"messages": []any{message}})}
}

func TestTheWholeAnswerCountsToZero(t *testing.T) {
	answer, _, err := jackfield.Try(execute, ask("from 3"), nil)
	if err != nil || !strings.Contains(string(answer), `"content":"3 2 1 0"`) {
		t.Error(string(answer), err)
	}
}

func TestAStreamHasOneItemForEachNumberAndOneForTheEnd(t *testing.T) {
	_, items, err := jackfield.Try(stream, ask("from 3"), jackfield.Object{"pause_ms": 0})
	if err != nil || len(items) != 5 {
		t.Error(items, err)
	}
}

func TestANumberThatIsTooLargeHasAStatusOfItsOwn(t *testing.T) {
	_, _, err := jackfield.Try(execute, ask("from 100001"), nil)
	if err == nil || err.(*jackfield.Error).HTTPStatus != 422 {
		t.Error(err)
	}
}
