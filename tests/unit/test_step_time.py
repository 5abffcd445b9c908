"""The model of a step's time, on numbers that can be worked out by hand."""

import pytest

from benchmarks.step_time import Device, Sizes, Work, decode_seconds, layouts, step_seconds, sync_seconds, train_seconds

SIZES = Sizes(weights=1e9, layers=10, width=100, bytes_each=2)
WORK = Work(prompts=4, group=8, prompt_tokens=100, answer_tokens=50, longest_answer=200)


def test_decoding_waits_for_memory_or_for_arithmetic():
    # prefill 2e9 · 4 · 100 / 1e12 = 0.8; rows 32 · 50 / 200 = 8; cache of a row 2 · 10 · 100 · 2 · (100 + 25) = 0.5 MB;
    # reading (2e9 + 8 · 0.5e6) / 1e12 = 2.004 ms, arithmetic 2e9 · 8 / 1e12 = 16 ms; 200 forwards
    assert decode_seconds(SIZES, WORK, Device(1e12, 1e12)) == pytest.approx(0.8 + 200 * 0.016)
    assert decode_seconds(SIZES, WORK, Device(1e15, 1e12)) == pytest.approx(0.0008 + 200 * 0.002004)
    assert decode_seconds(SIZES, WORK, Device(1e15, 1e12, 1e-3)) == pytest.approx(0.0008 + 200 * 0.012004)
    # two servers: half the prompts and rows each, the same weights to read
    assert decode_seconds(SIZES, WORK, Device(1e15, 1e12), 2) == pytest.approx(0.0004 + 200 * 0.002002)


def test_training_and_sync():
    # tokens 32 · 50 + 4 · 100 = 2000: 6 · 1e9 · 2000 / 1e12 = 12 s; 28e9 / 1e12 = 0.028 s
    assert train_seconds(SIZES, WORK, Device(1e12, 1e12)) == pytest.approx(12.028)
    assert train_seconds(SIZES, WORK, Device(1e12, 1e12), devices=4) == pytest.approx(3.007)
    assert sync_seconds(SIZES, [1e9, 2e9]) == pytest.approx(3.0)


def test_one_step_ahead_the_shorter_of_the_two_is_hidden():
    assert step_seconds(5.0, 3.0, 1.0, 0.5) == 9.5
    assert step_seconds(5.0, 3.0, 1.0, 0.5, ahead=True) == 6.5
    assert step_seconds(2.0, 3.0, 1.0, 0.5, ahead=True) == 4.0
    assert all(step > 0 for *_, step in layouts())
