"""How much noise is looked at at once, and for how long a peer has to wait then."""

import pytest

from pluginabi.patience import BURST_S, LONGEST_S, SHARE, Patience


def test_a_little_noise_costs_no_pause():
    patience = Patience(10.0)
    assert [patience.spend(BURST_S / 10, 10.0) for _ in range(9)] == [0.0] * 9


def test_beyond_the_burst_reading_pauses_until_half_of_it_is_there_again():
    patience = Patience(10.0)
    assert patience.spend(BURST_S, 10.0) == pytest.approx(BURST_S / 2 / SHARE)
    assert patience.until_s == pytest.approx(10.0 + BURST_S / 2 / SHARE)
    assert patience.spend(BURST_S / 4, patience.until_s) == 0.0


def test_over_time_a_peer_gets_exactly_its_share():
    patience, now_s, spent_s = Patience(0.0), 0.0, 0.0
    while now_s < 10.0:
        now_s += patience.spend(20e-6, now_s)
        spent_s += 20e-6
    assert spent_s == pytest.approx(10.0 * SHARE, rel=0.01)


def test_one_piece_of_noise_counts_no_more_than_its_maximum():
    patience = Patience(0.0)
    assert patience.spend(3600.0, 0.0) == pytest.approx((LONGEST_S - BURST_S / 2) / SHARE)


def test_long_silence_saves_up_no_more_than_the_burst():
    patience = Patience(0.0)
    assert patience.spend(BURST_S, 3600.0) > 0.0
