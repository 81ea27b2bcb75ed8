"""What a guard says about itself in its hello."""

from collections.abc import Mapping
from typing import ClassVar, Literal

from pluginapi import Guard, RequestInterceptRequest
from pluginapi.hello import hello_of


class Gate(Guard):
    id, version = "gate", "1.0.0"

    async def request_intercept_before(self, request: RequestInterceptRequest) -> None: ...


class Lenient(Gate):
    on_error: ClassVar[Mapping[str, Literal["fail", "skip"]]] = {"request.intercept_before": "skip"}


def test_a_guard_says_in_its_hello_that_its_hooks_must_not_be_skipped():
    assert hello_of(Gate).on_error == {"request.intercept_before": "fail"}


def test_a_class_below_may_say_otherwise():
    assert hello_of(Lenient).on_error == {"request.intercept_before": "skip"}
