"""Usage records wait for a while and in a bounded number."""

import msgspec
import pytest

from host.config.model import Config, RemoteManagement
from host.credentials.records import Credential
from host.management.records import MAX_RECORDS, Records, usage_record
from host.pipeline.request import Operation
from pluginabi.errors import ErrorBody
from pluginabi.frames import Usage
from pluginabi.payloads.usage import UsageHandleRequest
from tests.support.client_request import REQUEST

ACCOUNT = Credential(id="a", provider="claude", label="a", auth_index="0" * 16)


class Site:
    def __init__(self, **fields: object) -> None:
        self.now_s = 0.0
        key = RemoteManagement(secret_key="k")
        self.config = Config(**{"usage_statistics_enabled": True, "remote_management": key, **fields})  # type: ignore[arg-type]
        self.records = Records(lambda: self.config, clock=lambda: self.now_s)

    def used(self, name: str) -> None:
        self.records.used(UsageHandleRequest(model=name), ACCOUNT, request=REQUEST)

    def taken(self, count: int = 100) -> list[str]:
        return [record["model"] for record in self.records.take(count)]


@pytest.mark.parametrize(("configured", "kept_s"), [(10, 10), (0, 60), (-5, 60), (99_999, 3600)])
def test_a_record_that_nobody_fetches_goes_after_the_retention_time(configured: int, kept_s: float) -> None:
    site = Site(redis_usage_queue_retention_seconds=configured)
    site.used("old")
    site.now_s = kept_s / 2
    site.used("new")
    site.now_s = kept_s + 0.1
    assert site.taken() == ["new"]


def test_records_that_are_given_back_are_the_next_ones() -> None:
    site = Site()
    for name in "abc":
        site.used(name)
    site.records.give_back(site.records.take(2))
    assert site.taken(1) == ["a"] and site.taken() == ["b", "c"]


def test_the_queue_is_bounded_and_off_without_the_switch_or_without_a_management_key() -> None:
    site = Site()
    for number in range(MAX_RECORDS + 1):
        site.used(str(number))
    assert site.taken(1) == ["1"]
    for off in ({"usage_statistics_enabled": False}, {"remote_management": RemoteManagement()}):
        assert not Site(**off).records.wants_usage


def test_a_record_has_no_secret_and_says_what_was_missing() -> None:
    error = ErrorBody(message="bad key sk-abcdefghijkl", code="x", http_status=0)
    headers = {"x-ratelimit-limit": ("1",), "set-cookie": ("a=b",), "authorization": ("Bearer t",)}
    request = UsageHandleRequest(
        failed=True,
        error=error,
        response_headers=headers,
        usage=Usage(input_tokens=1, output_tokens=2, reasoning_tokens=3),
    )
    record = usage_record(request, ACCOUNT, REQUEST)
    assert record["fail"] == {"status_code": 500, "body": "bad key [redacted]"}
    assert record["response_headers"] == {"x-ratelimit-limit": ["1"]}
    assert record["tokens"]["total_tokens"] == 6


def test_a_record_says_who_called_from_where_with_what_and_whether_anything_was_generated() -> None:
    record = usage_record(UsageHandleRequest(stream=True), ACCOUNT, REQUEST)
    assert (record["client_ip"], record["user_agent"]) == ("10.0.0.7", "curl/8 Bearer [redacted]")
    assert (record["schema_version"], record["generate"], record["stream"]) == (1, True, True)
    counting = msgspec.structs.replace(REQUEST, operation=Operation.COUNT, headers={})
    assert usage_record(UsageHandleRequest(), ACCOUNT, counting)["generate"] is False
