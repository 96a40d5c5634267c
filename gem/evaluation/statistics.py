"""What an evaluation says about a model, and what it does not say: means with intervals, and paired comparisons.

Samples of one task are not independent of each other, so a task is one observation here: errors are those of the mean
over tasks (clustered by task), and intervals are Student's.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

LEVEL = 0.95
"""Of intervals."""

POWER = 0.8
"""With which the number of tasks that would decide a comparison is given."""

Samples = Mapping[str, Sequence[float]]
"""For each task the values of its samples."""


@dataclass(frozen=True)
class Estimate:
    """A mean and its interval.

    Attributes:
        mean: over tasks, each task's samples averaged first.
        error: the standard error of the mean; nan for fewer than two tasks.
        low: the lower end of the interval; nan for fewer than two tasks.
        high: the upper end.
        tasks: how many tasks there are.
        samples: how many samples of them.
    """

    mean: float
    error: float
    low: float
    high: float
    tasks: int
    samples: int


def mean_over_tasks(samples: Samples, level: float = LEVEL) -> Estimate:
    """Return the mean of a quantity of any range, with Student's interval.

    Raises:
        ValueError: there are no samples, or a task has none.
    """
    means = _task_means(samples)
    mean, error = float(np.mean(means)), _standard_error(means)
    half = error * _quantile(level, len(means) - 1)
    return Estimate(mean, error, mean - half, mean + half, len(means), sum(map(len, samples.values())))


def rate_over_tasks(samples: Samples, level: float = LEVEL) -> Estimate:
    """Return the mean of something that is 0 or 1, with an interval that stays between them.

    It is Wilson's interval (https://doi.org/10.2307/2276774) for the number of independent samples that would have the
    standard error found, with Student's quantile. Where all samples are alike, which shows no error, that number is
    the number of tasks.

    Raises:
        ValueError: there are no samples, or a task has none, or a value is neither 0 nor 1.
    """
    if any(value not in (0, 1) for values in samples.values() for value in values):
        raise ValueError("a rate is of values that are 0 or 1")
    plain = mean_over_tasks(samples, level)
    if plain.tasks < 2:
        return plain
    p = plain.mean
    n = float(plain.tasks) if plain.error == 0 else p * (1 - p) / plain.error**2
    z = _quantile(level, plain.tasks - 1)
    middle, half = p + z**2 / (2 * n), z * math.sqrt(p * (1 - p) / n + z**2 / (4 * n**2))
    low, high = (middle - half) / (1 + z**2 / n), (middle + half) / (1 + z**2 / n)
    return Estimate(p, plain.error, max(0.0, low), min(1.0, high), plain.tasks, plain.samples)


def pass_at(k: int, samples: Samples) -> float | None:
    """Return how often at least one of ``k`` samples of a task is 1: the unbiased estimate, averaged over tasks.

    It is that of the HumanEval paper (https://arxiv.org/abs/2107.03374). None if a task has fewer than ``k`` samples.
    """
    if any(len(values) < k for values in samples.values()):
        return None
    shares = []
    for values in samples.values():
        wrong = sum(value == 0 for value in values)
        shares.append(1 - math.comb(wrong, k) / math.comb(len(values), k))
    return float(np.mean(shares))


def best_of(k: int, samples: Samples) -> float | None:
    """Return the mean over tasks of the best of ``k`` samples, over all choices of ``k``; None if a task has fewer."""
    if any(len(values) < k for values in samples.values()):
        return None
    means = []
    for values in samples.values():
        weights = [math.comb(i, k - 1) / math.comb(len(values), k) for i in range(len(values))]
        means.append(float(np.dot(weights, sorted(values))))  # the i-th smallest is the best of those that hold it
    return float(np.mean(means))


@dataclass(frozen=True)
class Comparison:
    """How far two evaluations of the same tasks lie apart.

    Attributes:
        difference: the mean over tasks of the second minus the first.
        error: its standard error.
        low: the lower end of its interval.
        high: the upper end.
        p: of Student's paired test, two-sided; of the sign test where all tasks differ by the same; 1 where none does.
        tasks: tasks that both have.
        unpaired_error: what the error would be if the tasks were not the same.
        needed: tasks that would show a difference of this size with a power of :data:`POWER`; None where there is none.
    """

    difference: float
    error: float
    low: float
    high: float
    p: float
    tasks: int
    unpaired_error: float
    needed: int | None


def compare(first: Samples, second: Samples, level: float = LEVEL) -> Comparison:
    """Compare two evaluations, task by task.

    Args:
        first: values by task.
        second: of the same quantity; tasks that only one of the two has are left out.
        level: of the interval.

    Raises:
        ValueError: they have fewer than two tasks in common.
    """
    common = [task for task in first if task in second]
    if len(common) < 2:
        raise ValueError(f"the evaluations have {len(common)} tasks in common: at least two are needed to compare them")
    a, b = (_task_means({task: each[task] for task in common}) for each in (first, second))
    differences = np.round(b - a, 12)  # else means that are equal differ by rounding
    difference, error = float(np.mean(differences)), _standard_error(differences)
    half = error * _quantile(level, len(common) - 1)
    unpaired = math.hypot(_standard_error(a), _standard_error(b))
    ends = difference - half, difference + half
    p = _p_value(difference, error, len(common))
    return Comparison(difference, error, *ends, p, len(common), unpaired, tasks_needed(difference, error, len(common)))


def holm(p_values: Sequence[float]) -> list[float]:
    """Return p-values adjusted for their number by Holm's method (https://www.jstor.org/stable/4615733).

    >>> [round(p, 3) for p in holm([0.01, 0.04, 0.03])]
    [0.03, 0.06, 0.06]
    """
    adjusted = [0.0] * len(p_values)
    largest = 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = largest
    return adjusted


def _task_means(samples: Samples) -> np.ndarray:
    if not samples or any(len(values) == 0 for values in samples.values()):
        raise ValueError("a mean over tasks needs tasks, each with a sample")
    return np.array([np.mean(values) for values in samples.values()], dtype=np.float64)


def _standard_error(means: np.ndarray) -> float:
    if len(means) < 2:
        return math.nan
    # Exactly 0 where all are alike, which rounding would hide.
    return 0.0 if np.all(means == means[0]) else float(np.std(means, ddof=1)) / math.sqrt(len(means))


@functools.lru_cache
def _quantile(level: float, freedom: int) -> float:
    from scipy.stats import t

    return float(t.ppf(0.5 + level / 2, freedom)) if freedom > 0 else math.nan


def _p_value(difference: float, error: float, tasks: int) -> float:
    from scipy.stats import t

    if difference == 0:
        return 1.0
    if error == 0:  # Student's would be certain, from two tasks on
        return min(1.0, 2 * 0.5**tasks)
    return max(float(2 * t.sf(abs(difference) / error, tasks - 1)), 2 * 0.5**tasks)


def tasks_needed(difference: float, error: float, tasks: int, comparisons: int = 1) -> int | None:
    """Return how many tasks would show a difference with a power of :data:`POWER`; None if there is no difference.

    Args:
        difference: that was found.
        error: its standard error.
        tasks: of which it is.
        comparisons: that are made at the same time, for which p-values are adjusted.
    """
    from scipy.stats import norm, t

    if difference == 0:
        return None
    alpha = (1 - LEVEL) / comparisons
    ratio = error * math.sqrt(tasks) / abs(difference)
    least = math.ceil(1 - math.log2(alpha))  # fewer show nothing, whatever they are: see _p_value
    needed = max(least, math.ceil(((norm.ppf(1 - alpha / 2) + norm.ppf(POWER)) * ratio) ** 2))
    for _ in range(20):  # Student's quantiles depend on the number itself
        freedom = needed - 1
        again = max(least, math.ceil(float((t.ppf(1 - alpha / 2, freedom) + t.ppf(POWER, freedom)) * ratio) ** 2))
        if again <= needed:
            break
        needed = again
    return needed
