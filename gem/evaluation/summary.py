"""The results of an evaluation as plain data: scores with intervals, what ended episodes, what they cost.

A summary depends on the episodes alone, not on when they were run, or in how many runs.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from gem.evaluation.statistics import (
    LEVEL,
    Estimate,
    Samples,
    best_of,
    compare,
    holm,
    mean_over_tasks,
    pass_at,
    rate_over_tasks,
    tasks_needed,
)
from gem.evaluation.store import Evaluation
from gem.rollout.episode import Episode
from gem.rollout.metrics import mean_metrics

Quantity = Callable[[Episode], float]

QUANTITIES: dict[str, Quantity] = {
    "success": lambda episode: float(episode.success),
    "return": lambda episode: episode.total_reward,
}
"""What is scored."""


def summarize(evaluation: Evaluation) -> dict[str, Any]:
    """Return the results: for each environment id, and over all of them.

    Returns:
        ``environments``: by id, ``success`` and ``return`` (see :class:`gem.evaluation.statistics.Estimate`),
        ``pass_at`` and ``best_of`` by k, ``turns``, ``prompt_tokens`` and ``sampled_tokens`` per episode,
        ``outcomes``, and ``failed``: how many units have no valid episode, and between which bounds the success rate
        lies whatever they would have been. ``mean``: the mean of the environments' success rates and returns, with its
        error. ``metrics``: what a trainer's validation logs of the same episodes, by the same names (see
        :func:`gem.rollout.mean_metrics`). ``prompt_tokens`` and ``sampled_tokens``: of all attempts. ``missing``: units
        without a valid episode.
    """
    ids = sorted({task.env_id for task in evaluation.tasks})
    environments = {env_id: _of_environment(evaluation, env_id) for env_id in ids}
    scored = [each for each in environments.values() if each["success"] is not None]
    return {
        "agent": evaluation.manifest["agent"],
        "level": LEVEL,
        "environments": environments,
        "mean": {name: _mean_of([each[name] for each in scored]) for name in QUANTITIES},
        "metrics": mean_metrics(evaluation.latest),
        "prompt_tokens": evaluation.prompt_tokens,
        "sampled_tokens": evaluation.sampled_tokens,
        "missing": len(evaluation.missing),
    }


def outcome(episode: Episode) -> str:
    """Return how an episode ended: ``won``, ``lost``, ``truncated (...)`` or ``failed (...)``, with the reason.

    >>> from gem.tasks import Task
    >>> outcome(Episode(Task("game:Wordle-v0", 0), truncation="context"))
    'truncated (context)'
    """
    if not episode.valid:
        return f"failed ({episode.truncation})"
    if episode.success:
        return "won"
    return "lost" if episode.truncation is None else f"truncated ({episode.truncation})"


def samples_of(evaluation: Evaluation, env_id: str, quantity: Quantity) -> Samples:
    """Return a quantity of the valid episodes of an environment, by task; tasks without any are left out."""
    values: dict[str, list[float]] = {}
    for unit in evaluation.units:
        task = evaluation.tasks[unit[0]]
        if task.env_id == env_id and unit in evaluation.episodes:
            values.setdefault(task.to_json(), []).append(quantity(evaluation.episodes[unit]))
    return values


def compare_evaluations(first: Evaluation, second: Evaluation, quantity: str = "success") -> dict[str, Any]:
    """Compare two evaluations, environment by environment, on the tasks that both have.

    Args:
        first: the one that the other is compared with.
        second: the other: a positive difference says that it is better.
        quantity: of :data:`QUANTITIES`.

    Returns:
        By environment id (see :class:`gem.evaluation.statistics.Comparison`) with ``adjusted_p``, adjusted for the
        number of environments by Holm's method, and ``verdict``: ``"better"``, ``"worse"`` or ``"undecided"``.

    Raises:
        ValueError: they have no environment with two tasks in common.
    """
    of = QUANTITIES[quantity]
    found: dict[str, dict[str, Any]] = {}
    for env_id in sorted({task.env_id for task in first.tasks} & {task.env_id for task in second.tasks}):
        a, b = samples_of(first, env_id, of), samples_of(second, env_id, of)
        if len(a.keys() & b.keys()) >= 2:
            found[env_id] = asdict(compare(a, b))
    if not found:
        raise ValueError("the evaluations have no environment with two tasks in common")
    adjusted = holm([each["p"] for each in found.values()])
    for each, p in zip(found.values(), adjusted, strict=True):
        decided = p < 1 - LEVEL
        needed = tasks_needed(each["difference"], each["error"], each["tasks"], len(found))
        each["needed"] = needed if decided or needed is None else max(needed, each["tasks"] + 1)
        each["adjusted_p"] = p
        each["verdict"] = "undecided" if not decided else "better" if each["difference"] > 0 else "worse"
    return found


def result_rows(summary: dict[str, Any]) -> list[list[str]]:
    """Return the table of what :func:`summarize` returned, its head first."""
    rows = [["environment", "tasks", "episodes", "success", "return", "turns", "tokens", "failed"]]
    for env_id, each in summary["environments"].items():
        scores = _interval(each["success"]), _interval(each["return"])
        costs = _number(each["turns"], ".1f"), _number(each["sampled_tokens"], ".0f")
        rows.append([env_id, str(each["tasks"]), str(each["episodes"]), *scores, *costs, str(each["failed"]["units"])])
    return rows


def comparison_rows(found: dict[str, Any]) -> list[list[str]]:
    """Return the table of what :func:`compare_evaluations` returned, its head first."""
    rows = [["environment", "tasks", "difference", "adjusted p", "verdict", "needs"]]
    for env_id, each in found.items():
        difference = f"{each['difference']:+.3f} [{each['low']:+.2f}, {each['high']:+.2f}]"
        needed = "-" if each["needed"] is None else f"{each['needed']} tasks"
        rows.append([env_id, str(each["tasks"]), difference, f"{each['adjusted_p']:.3g}", each["verdict"], needed])
    return rows


def _interval(estimate: dict[str, Any] | None) -> str:
    """Return a mean with its interval, as ``0.512 [0.44, 0.58]``."""
    if estimate is None:
        return "-"
    if estimate["low"] is None:  # of one task
        return f"{estimate['mean']:.3f}"
    return f"{estimate['mean']:.3f} [{estimate['low']:.2f}, {estimate['high']:.2f}]"


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


def _of_environment(evaluation: Evaluation, env_id: str) -> dict[str, Any]:
    units = [unit for unit in evaluation.units if evaluation.tasks[unit[0]].env_id == env_id]
    valid = [evaluation.episodes[unit] for unit in units if unit in evaluation.episodes]
    attempts = [episode for unit in units for episode in evaluation.failures.get(unit, [])]
    successes = samples_of(evaluation, env_id, QUANTITIES["success"])
    returns = samples_of(evaluation, env_id, QUANTITIES["return"])
    ks = [k for k in (1, 2, 4, 8, 16, 32, 64) if k <= evaluation.samples]
    missing = len(units) - len(valid)
    won = sum(episode.success for episode in valid)
    return {
        "tasks": len({task for task, _ in units}),
        "episodes": len(valid),
        "success": _plain(rate_over_tasks(successes)) if valid else None,
        "return": _plain(mean_over_tasks(returns)) if valid else None,
        "pass_at": {str(k): pass_at(k, successes) for k in ks} if valid else {},
        "best_of": {str(k): best_of(k, returns) for k in ks} if valid else {},
        "turns": _plain_mean([len(episode.turns) for episode in valid]),
        "prompt_tokens": _plain_mean([episode.prompt_tokens for episode in valid]),
        "sampled_tokens": _plain_mean([episode.sampled_tokens for episode in valid]),
        "outcomes": dict(sorted(Counter(map(outcome, valid)).items())),
        "failed": {
            "units": missing,
            "attempts": dict(sorted(Counter(map(outcome, attempts)).items())),
            "success_bounds": [won / len(units), (won + missing) / len(units)],
        },
    }


def _plain(estimate: Estimate) -> dict[str, Any]:
    """Return an estimate as JSON data, which has no nan."""
    return {name: None if value != value else value for name, value in asdict(estimate).items()}


def _plain_mean(values: list[int]) -> float | None:
    return sum(values) / len(values) if values else None


def _mean_of(estimates: list[dict[str, Any]]) -> dict[str, float | None] | None:
    """Return the mean of several environments' estimates, each of tasks of its own, and its standard error."""
    if not estimates:
        return None
    errors = [each["error"] for each in estimates]
    error = None if None in errors else sum(each**2 for each in errors) ** 0.5 / len(errors)
    return {"mean": sum(each["mean"] for each in estimates) / len(estimates), "error": error}
