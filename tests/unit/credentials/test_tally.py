"""The counters and recent buckets that listings show."""

from host.credentials.results import BUCKET_S, BUCKETS, Tallies


def counts(tallies: Tallies) -> list[tuple[object, object]]:
    return [(bucket["success"], bucket["failed"]) for bucket in tallies.recent("a")]


def test_A26_results_stand_in_the_newest_bucket_and_one_earlier_ten_minutes_later():
    now_s = [1_700_000_100.0]
    tallies = Tallies(clock=lambda: now_s[0])
    tallies.succeeded("a")
    tallies.failed("a")
    assert counts(tallies) == [(0, 0)] * (BUCKETS - 1) + [(1, 1)]
    newest = tallies.recent("a")[-1]["time"]
    now_s[0] += BUCKET_S
    assert counts(tallies) == [(0, 0)] * (BUCKETS - 2) + [(1, 1), (0, 0)]
    assert tallies.recent("a")[-2]["time"] == newest
    assert tallies.of("a") == (1, 1)
    now_s[0] += BUCKETS * BUCKET_S
    assert counts(tallies) == [(0, 0)] * BUCKETS
    assert tallies.of("a") == (1, 1)
