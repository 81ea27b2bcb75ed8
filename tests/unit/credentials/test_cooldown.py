"""Who rests until when, and what ends a rest."""

import time

import pytest

from host.credentials.classify import classify
from host.credentials.cooldown import MAX_MODELS_PER_CREDENTIAL, CooldownBook, cause_of
from host.pipeline.state import build_state
from pluginabi.errors import ErrorBody
from tests.support.pipeline import Clock, compat_config, snapshot


def error(status: int, **fields) -> ErrorBody:
    return ErrorBody(http_status=status, **fields)


class Desk:
    """A book over a clock that is turned by hand."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.book = CooldownBook(clock=self.clock)

    def fail(self, status: int = 429, *, credential: str = "c", model: str = "m", **fields) -> float:
        return self.book.failed(credential, model, classify(error(status, **fields)))

    def succeed(self, *, began: float = 0, seen: float = 0, quota_left: bool = False, model: str = "m") -> None:
        """`began`, `seen`: seconds before now."""
        now = self.clock.now_s
        self.book.succeeded("c", model, began_s=now - began, seen_s=now - seen, quota_left=quota_left)

    def turn(self, seconds: float) -> None:
        self.clock.now_s += seconds
        self.book.tick()

    def rests(self, model: str = "m", credential: str = "c") -> bool:
        return self.book.block(credential, model) is not None


@pytest.fixture
def desk() -> Desk:
    return Desk()


def test_F4_429_without_a_hint_doubles_after_each_expiry_and_F5_stops_at_half_an_hour(desk):
    rests = []
    for _ in range(13):
        rests.append(desk.fail())
        desk.turn(rests[-1])
    assert rests == [1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 1800, 1800]


def test_failures_inside_an_open_window_count_once(desk):
    assert [desk.fail() for _ in range(3)] == [1, 1, 1]


def test_F6_a_hint_does_not_raise_the_level(desk):
    for _ in range(3):
        desk.turn(desk.fail())
    desk.turn(desk.fail(retry_after_ms=90_000))
    assert desk.fail() == 8


def test_F9_a_challenge_doubles_too_but_never_below_ten_seconds(desk):
    rests = []
    for _ in range(6):
        rests.append(desk.fail(403, headers={"cf-mitigated": ["challenge"]}))
        desk.turn(rests[-1])
    assert rests == [10, 10, 10, 10, 16, 32]


def test_a_host_that_does_not_answer_is_left_alone_longer_each_time_up_to_the_passing_rest(desk):
    rests = []
    for _ in range(8):
        rests.append(desk.fail(504, code="upstream_timeout", scope="connection", details={"phase": "connect"}))
        desk.turn(rests[-1])
    assert rests == [1, 2, 4, 8, 16, 32, 60, 60]


def test_a_success_ends_what_we_guessed_and_forgets_the_level(desk):
    desk.fail()
    desk.turn(1)
    desk.fail()
    desk.succeed()
    assert desk.book.empty
    assert desk.fail() == 1


def test_a_time_that_the_upstream_named_outlasts_a_success_of_the_same_moment(desk):
    desk.fail(retry_after_ms=60_000)
    desk.succeed(began=5)
    assert desk.rests()


def test_a_guess_that_changes_nothing_about_such_a_time_does_not_make_it_one(desk):
    desk.fail(503, retry_after_ms=300_000)
    desk.turn(1)
    assert desk.fail(500) == 299
    desk.succeed(began=2)
    assert desk.rests()
    assert desk.fail(503, retry_after_ms=5_000) == 299


@pytest.mark.parametrize("how", [{"began": 0}, {"began": 5, "quota_left": True}])
def test_a_time_that_the_upstream_named_ends_with_the_first_evidence_against_it(desk, how):
    desk.fail(retry_after_ms=60_000)
    desk.turn(1)
    desk.succeed(**how)
    assert not desk.rests()


def test_a_stream_that_began_before_the_failure_proves_nothing(desk):
    desk.turn(100)
    desk.fail()
    desk.succeed(began=50, seen=40)
    assert desk.rests()


def test_a_block_on_the_whole_credential_outlasts_a_success_of_the_same_moment(desk):
    desk.fail(401, scope="credential")
    desk.turn(1)
    desk.succeed(began=5)
    assert desk.rests("other")
    desk.succeed(began=0.5)
    assert not desk.rests("other")


def test_D19_a_block_ends_by_itself(desk):
    desk.fail(retry_after_ms=60_000)
    assert desk.rests()
    desk.turn(60)
    assert not desk.rests()
    assert desk.book.empty


def test_a_rest_goes_on_while_the_machine_sleeps_and_whatever_its_clock_is_set_to(monkeypatch):
    book = build_state(compat_config(), snapshot()).pool.book
    book.failed("c", "m", classify(error(429, retry_after_ms=5 * 3_600_000)))
    monkeypatch.setattr(time, "time", lambda: 0.0)
    assert book.block("c", "m") is not None
    at_s = time.clock_gettime(time.CLOCK_BOOTTIME)
    monkeypatch.setattr(time, "clock_gettime", lambda clock: at_s + 6 * 3600 if clock == time.CLOCK_BOOTTIME else 0.0)
    assert book.block("c", "m") is None


def test_the_later_end_of_two_hints_wins(desk):
    assert [desk.fail(retry_after_ms=60_000), desk.fail(retry_after_ms=5_000)] == [60, 60]


def test_what_the_upstream_says_beats_what_we_guessed(desk):
    desk.fail(500)
    assert desk.fail(503, retry_after_ms=5_000) == 5


@pytest.mark.parametrize("hard", [401, 403, 404])
def test_a_limit_that_ends_soon_does_not_mend_a_key_that_was_refused(desk, hard):
    long_s = desk.fail(hard)
    reason = desk.book.block("c", "m").reason
    assert desk.fail(retry_after_ms=5_000) == long_s
    assert desk.book.block("c", "m").reason == reason


def test_a_passing_failure_after_a_refused_key_leaves_the_reason_that_a_new_token_ends(desk):
    desk.fail(401)
    for status in (500, 429, 503):
        desk.fail(status)
    desk.book.lift("c", {"unauthorized"})
    assert not desk.rests()


def test_a_burst_of_limits_in_a_window_that_another_failure_opened_counts_for_nothing(desk):
    desk.fail(500)
    assert [desk.fail() for _ in range(5)] == [60] * 5
    desk.turn(60)
    assert desk.fail() == 1


def test_F31_a_reset_forgets_one_credential_and_names_its_models(desk):
    for credential in ("a", "b"):
        desk.fail(credential=credential)
    assert desk.book.reset("a") == ("m",)
    assert (desk.rests(credential="a"), desk.rests(credential="b")) == (False, True)


def test_only_blocks_for_the_given_reasons_are_lifted(desk):
    desk.fail(401, model="m1")
    desk.fail(429, model="m2")
    desk.book.lift("c", {"unauthorized"})
    assert (desk.rests("m1"), desk.rests("m2")) == (False, True)


def test_names_that_clients_made_up_do_not_fill_the_memory(desk):
    for number in range(MAX_MODELS_PER_CREDENTIAL + 10):
        desk.fail(404, model=f"made-up-{number}")
    assert len(desk.book.states("c")) == MAX_MODELS_PER_CREDENTIAL


def test_a_state_that_is_renewed_for_ever_does_not_grow_the_queue(desk):
    for _ in range(1000):
        desk.fail(503, retry_after_ms=1_000)
        desk.clock.now_s += 0.5
    assert len(desk.book._queue) < 100


def test_the_level_of_a_limit_is_forgotten_after_an_hour_of_quiet(desk):
    desk.turn(desk.fail())
    desk.turn(3600)
    assert desk.book.empty


def test_what_the_upstream_said_is_kept_short(desk):
    assert len(cause_of(500, "c" * 1000, "m" * 1000).message) == 200


def test_a_later_picture_of_a_shelf_can_be_made_from_its_log_or_must_be_made_anew(desk):
    shelf = desk.book.shelf("m")
    desk.fail(credential="a")
    seen = shelf.version
    desk.fail(credential="b")
    assert shelf.since(seen) == ["b"]
    for number in range(2000):
        desk.fail(credential=str(number))
    assert shelf.since(seen) is None
