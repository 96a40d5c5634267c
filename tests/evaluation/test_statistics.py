"""Intervals cover what they promise, and pairing pays."""

import math

import numpy as np
import pytest

pytest.importorskip("scipy")

from gem.evaluation.statistics import best_of, compare, holm, mean_over_tasks, pass_at, rate_over_tasks

ROUNDS = 2000


def drawn(rng, tasks, samples, rates):
    """Successes of samples of tasks, each task with a rate of its own."""
    found = rng.random((tasks, samples)) < np.resize(rates, tasks)[:, None]
    return {str(i): row.astype(float).tolist() for i, row in enumerate(found)}


def test_a_mean_is_of_tasks_and_its_error_clustered_by_them():
    estimate = mean_over_tasks({"a": [0, 0, 0, 0], "b": [1.0], "c": [2, 4]})
    assert estimate.mean == pytest.approx((0 + 1 + 3) / 3)
    assert estimate.error == pytest.approx(np.std([0, 1, 3], ddof=1) / math.sqrt(3))
    assert estimate.high - estimate.mean == pytest.approx(4.302653 * estimate.error)
    assert (estimate.tasks, estimate.samples) == (3, 7)


def test_one_task_has_no_interval_and_none_no_mean():
    assert math.isnan(mean_over_tasks({"a": [1.0, 0.0]}).low)
    assert math.isnan(rate_over_tasks({"a": [1, 0]}).high)
    for samples in ({}, {"a": []}):
        with pytest.raises(ValueError, match="needs tasks"):
            mean_over_tasks(samples)
    with pytest.raises(ValueError, match="0 or 1"):
        rate_over_tasks({"a": [0.5]})


def test_a_rate_without_errors_is_not_certain():
    estimate = rate_over_tasks({str(i): [1, 1, 1, 1] for i in range(20)})
    assert (estimate.mean, estimate.error, estimate.high) == (1.0, 0.0, 1.0)
    assert 0.8 < estimate.low < 0.85  # as for 20 samples, not 80


@pytest.mark.parametrize(
    ("tasks", "samples", "spread"), [(50, 1, (0.5,)), (100, 4, (0.1, 0.9)), (40, 8, (0.2, 0.4, 0.9)), (200, 1, (0.1,))]
)
def test_intervals_of_rates_cover_the_truth_as_often_as_they_say(tasks, samples, spread):
    """The tasks are drawn too, from those of the given rates."""
    rng = np.random.default_rng(7)
    covered = 0
    for _ in range(ROUNDS):
        rates = rng.choice(spread, tasks)
        estimate = rate_over_tasks(drawn(rng, tasks, samples, rates))
        covered += estimate.low <= np.mean(spread) <= estimate.high
    assert 0.935 <= covered / ROUNDS <= 0.965


def test_intervals_of_means_cover_the_truth_as_often_as_they_say():
    rng = np.random.default_rng(8)
    covered = 0
    for _ in range(ROUNDS):
        values = rng.normal(0.3, 1, 30)[:, None] + rng.normal(0, 0.5, (30, 4))
        estimate = mean_over_tasks(dict(enumerate(values.tolist())))
        covered += estimate.low <= 0.3 <= estimate.high
    assert 0.935 <= covered / ROUNDS <= 0.965


def test_the_paired_test_is_wrong_as_often_as_it_says_and_needs_fewer_tasks():
    rng = np.random.default_rng(9)
    wrong, found_paired, found_unpaired = 0, 0, 0
    for _ in range(ROUNDS):
        rates = rng.choice([0.1, 0.9], 60)
        a, same, better = (drawn(rng, 60, 4, np.minimum(rates + gain, 1)) for gain in (0, 0, 0.1))
        wrong += compare(a, same).p < 0.05
        comparison = compare(a, better)
        found_paired += comparison.p < 0.05
        found_unpaired += abs(comparison.difference) > 1.98 * comparison.unpaired_error
        assert comparison.error < comparison.unpaired_error
    assert 0.04 <= wrong / ROUNDS <= 0.06
    assert found_paired > 4 * found_unpaired


def test_a_comparison_says_how_many_tasks_would_decide_it():
    rng = np.random.default_rng(10)
    a = {str(i): [float(x)] for i, x in enumerate(rng.normal(0, 1, 100))}
    b = {task: [values[0] + 0.2 + rng.normal(0, 1)] for task, values in a.items()}
    seen = compare(a, b)
    found = 0
    for _ in range(200):
        drawn_again = rng.normal(seen.difference, seen.error * 10, seen.needed)
        small = {str(i): [float(value)] for i, value in enumerate(drawn_again)}
        found += compare({task: [0.0] for task in small}, small).p < 0.05
    assert 0.7 < found / 200 < 0.9
    assert compare(a, a).needed is None
    assert (compare(a, a).p, compare(a, a).difference) == (1.0, 0.0)


def test_only_common_tasks_are_compared():
    a, b = {"x": [1], "y": [0], "z": [1]}, {"y": [1], "z": [1], "w": [0]}
    assert compare(a, b).tasks == 2
    with pytest.raises(ValueError, match="1 tasks in common"):
        compare({"x": [1], "y": [0]}, {"x": [1]})


def test_pass_at_k_and_best_of_k_are_means_over_all_choices():
    samples = {"a": [1, 0, 0, 0], "b": [0, 0, 0, 0]}
    assert pass_at(1, samples) == pytest.approx(0.125)
    assert pass_at(2, samples) == pytest.approx(0.25)
    assert pass_at(4, samples) == pytest.approx(0.5)
    assert pass_at(5, samples) is None
    assert best_of(1, {"a": [1, 2, 6]}) == pytest.approx(3)
    assert best_of(2, {"a": [1, 2, 6]}) == pytest.approx((2 + 6 + 6) / 3)
    assert best_of(3, {"a": [6, 2, 1]}) == 6
    assert best_of(4, {"a": [6, 2, 1]}) is None


def test_holm():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []


def test_a_few_tasks_that_all_differ_alike_are_no_certainty():
    for tasks, p in ((2, 0.5), (4, 0.125), (8, 2 / 256)):
        a, b = ({str(i): [value] for i in range(tasks)} for value in (0.0, 1.0))
        assert compare(a, b).p == pytest.approx(p)
    rng = np.random.default_rng(11)
    found = [compare(drawn(rng, 2, 1, (0.5,)), drawn(rng, 2, 1, (0.5,))).p < 0.05 for _ in range(500)]
    assert not any(found)


def test_means_that_are_equal_but_for_rounding_are_equal():
    assert compare({"x": [0.1, 0.2], "y": [0.3]}, {"x": [0.3 / 2] * 2, "y": [0.3]}).needed is None
    assert compare({"x": [0.1 + 0.2], "y": [0.3]}, {"x": [0.3], "y": [0.3]}).p == 1.0
