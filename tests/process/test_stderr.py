"""What becomes of a plugin's stderr."""

import asyncio
import os

import pytest

from host.runtime.stderr import LINE_MAX_BYTES, LINES_BURST, RING_BYTES, LineLog, SecretMask, StderrDrain, secret_values


class Records:
    def __init__(self):
        self.all = []

    def __call__(self, level, event, fields):
        self.all.append((level, event, dict(fields)))


def parse(*lines):
    records = Records()
    log = LineLog(records)
    for line in lines:
        log.line(line)
    log.flush()
    return records.all


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("plain words", ("info", "plain words", {})),
        ("[WARN] disk is full", ("warning", "disk is full", {})),
        ("ERROR: no licence", ("error", "no licence", {})),
        ("DEBUG here", ("debug", "here", {})),
        ("INFO", ("info", "INFO", {})),
        ("Error handling is fun", ("info", "Error handling is fun", {})),
        ('{"level":"warn","msg":"slow","ms":7}', ("warning", "slow", {"ms": 7})),
        ('{"severity":"CRITICAL","event":"boom"}', ("error", "boom", {})),
        ("{not json", ("info", "{not json", {})),
    ],
)
def test_a_line_becomes_a_record_with_level_event_and_fields(line, expected):
    assert parse(line) == [expected]


def test_a_traceback_becomes_one_record_named_after_its_exception():
    traceback = ["Traceback (most recent call last):", '  File "x.py", line 3, in f', "    g()", "ValueError: bad"]
    assert parse("before", *traceback, "after") == [
        ("info", "before", {}),
        ("error", "ValueError: bad", {"traceback": "\n".join(traceback)}),
        ("info", "after", {}),
    ]


def test_a_traceback_cut_off_by_death_is_not_lost():
    assert parse("Traceback (most recent call last):", "  File x")[0][2]["traceback"].endswith("File x")


def test_beyond_the_rate_lines_are_counted_and_the_count_is_reported():
    now_s = [0.0]
    records = Records()
    told = []
    log = LineLog(records, clock=lambda: now_s[0], on_suppressed=told.append)
    admitted = sum(log.admit() for _ in range(LINES_BURST + 50))
    assert admitted == LINES_BURST
    assert log.suppressed == sum(told) == 50
    now_s[0] = 1.0
    assert log.admit()
    log.line("again")
    assert records.all == [("info", "again", {"suppressed_lines": 50})]


@pytest.mark.parametrize(
    ("text", "masked"),
    [
        ("Authorization: Bearer abcdef123456", "Authorization: Bearer ***"),
        ("api_key=abcdef12345&x=1", "api_key=***&x=1"),
        ('{"password": "hunter22"}', '{"password": "***"}'),
        ("using sk-abcdefgh12345678 now", "using sk-*** now"),
        ("the configured one: tops3cret!", "the configured one: ***"),
        ("nothing to hide", "nothing to hide"),
    ],
)
def test_known_values_and_what_looks_like_a_secret_is_masked(text, masked):
    assert SecretMask(["tops3cret!", "abc"])(text) == masked


def test_values_of_an_environment_are_secret_by_name_or_when_they_look_random():
    environment = {
        "EXAMPLE_TOKEN": "short-one",
        "REGION": "eu-central-1",
        "PYTHONPATH": "/opt/plugins/with/a/long/path",
        "PLAIN": "q8Zr2LmN5vXc7BhT4kWdP9",
    }
    assert secret_values(environment) == ["short-one", "q8Zr2LmN5vXc7BhT4kWdP9"]


class Drained:
    """A drain on a real pipe."""

    def __init__(self, **fields):
        self.records = Records()
        self.read_fd, self.write_fd = os.pipe()
        self.drain = StderrDrain(self.records, mask=SecretMask(["tops3cret!"]), **fields)

    async def written(self, *pieces):
        """Write the pieces from a thread (they may not fit into the pipe), close, and wait for the end."""
        await self.drain.start(self.read_fd)

        def write():
            with os.fdopen(self.write_fd, "wb", buffering=0) as pipe:
                for piece in pieces:
                    pipe.write(piece)

        await asyncio.to_thread(write)
        assert await self.drain.ended_within(60)
        return self.records.all


async def test_colours_and_control_characters_are_stripped_and_bad_utf8_is_replaced():
    records = await Drained().written(b"\x1b[31mred\x1b[0m \x07bell\ttab\r\n", b"caf\xe9\n")
    assert records == [("info", "red bell\ttab", {}), ("info", "caf\ufffd", {})]


async def test_a_character_split_across_reads_stays_whole():
    records = await Drained().written(b"caf\xc3", b"\xa9\n")
    assert records == [("info", "café", {})]


async def test_a_line_longer_than_16_kib_is_cut_and_its_rest_skipped():
    drained = Drained()
    records = await drained.written(b"x" * (LINE_MAX_BYTES * 4), b"y" * 100, b"\nnext\n")
    assert [len(event) for _, event, _ in records] == [LINE_MAX_BYTES, 4]
    assert drained.drain.tail(1) == ["next"]


async def test_an_unfinished_last_line_is_part_of_the_tail_with_its_secrets_masked():
    drained = Drained()
    await drained.written(b"one\n", b"died with tops3cret!")
    assert drained.drain.tail(40) == ["one", "died with ***"]


async def test_a_flood_is_drained_to_its_end_and_costs_a_bounded_number_of_records():
    drained = Drained()
    records = await drained.written(*[b"noise noise noise\n" * 5000] * 100, b"last words\n")
    assert len(records) < LINES_BURST * 4
    assert drained.drain.tail(1) == ["last words"]
    assert sum(len(line) + 1 for line in drained.drain.tail(100_000)) <= RING_BYTES
    assert sum(fields.get("suppressed_lines", 0) for _, _, fields in records) + len(records) >= 500_000
