"""Metrics of a batch of episodes, under the names that all adapters log."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Protocol

from gem.tasks import Task

FAILURES = ("aborted", "environment_errors", "overlong", "retries", "left_out")
"""Metrics that are means over all episodes. All others are means over the valid ones: they show what the model does."""

OF_EACH_ENV = ("return", "success", "turns", "environment_errors")
"""Metrics that a batch of several environment ids has for each of them too."""


class HasMetrics(Protocol):
    """An episode, or what a trainer has kept of one."""

    @property
    def task(self) -> Task:
        """Its task."""
        ...

    @property
    def valid(self) -> bool:
        """See :attr:`gem.rollout.Episode.valid`."""
        ...

    def metrics(self) -> dict[str, float]:
        """Return what :meth:`gem.rollout.Episode.metrics` returned."""
        ...


def mean_metrics(episodes: Iterable[HasMetrics]) -> dict[str, float]:
    """Return the means of :meth:`gem.rollout.Episode.metrics` over a batch.

    The shares of episodes that failed (:data:`FAILURES`) are of all episodes. Everything else is a mean over the valid
    ones, since a failure that is not the model's changes neither its return nor its success rate; without any valid
    episode, those metrics are missing. A batch with several environment ids has some of them (:data:`OF_EACH_ENV`) for
    each id as well, as ``<name>/<env_id>``.

    >>> from gem.rollout import Episode
    >>> failed = Episode(Task("game:Hangman-v0", 1), truncation="error")
    >>> metrics = mean_metrics([Episode(Task("game:Wordle-v0", 0)), Episode(Task("game:Hangman-v0", 0)), failed])
    >>> for name in sorted(metrics):
    ...     if name.startswith("environment_errors"):
    ...         print(name, round(metrics[name], 2))
    environment_errors 0.33
    environment_errors/game:Hangman-v0 0.5
    environment_errors/game:Wordle-v0 0.0

    Args:
        episodes: of one step, or of one validation.
    """
    episodes = list(episodes)
    metrics = _means(episodes)
    ids = sorted({episode.task.env_id for episode in episodes})
    if len(ids) > 1:
        for env_id in ids:
            means = _means([episode for episode in episodes if episode.task.env_id == env_id])
            metrics |= {f"{name}/{env_id}": means[name] for name in OF_EACH_ENV if name in means}
    return metrics


def logged_metrics(episodes: Sequence[HasMetrics], env_ids: Sequence[str]) -> dict[str, float]:
    """Return the metrics of a batch as they are logged: ``gem/<name>``, and how many episodes they are of.

    Args:
        episodes: of the batch.
        env_ids: all of the training. Where they are several, each has its own metrics and counts, as
            ``gem/<name>/<env_id>``.
    """
    parts = {"": episodes}
    if len(env_ids) > 1:
        parts |= {f"/{env_id}": [e for e in episodes if e.task.env_id == env_id] for env_id in env_ids}
    metrics: dict[str, float] = {}
    for suffix, some in parts.items():
        means = _means(some)
        metrics |= {f"gem/{name}{suffix}": means[name] for name in means if not suffix or name in OF_EACH_ENV}
        metrics[f"gem/episodes{suffix}"] = float(len(some))
        metrics[f"gem/valid_episodes{suffix}"] = float(sum(episode.valid for episode in some))
    return metrics


def merged_metrics(parts: Sequence[dict[str, float]]) -> dict[str, float]:
    """Return what :func:`logged_metrics` returned for several batches, as if they were one.

    >>> merged_metrics([{"gem/turns": 2.0, "gem/valid_episodes": 1.0}, {"gem/turns": 5.0, "gem/valid_episodes": 2.0}])
    {'gem/turns': 4.0, 'gem/valid_episodes': 3.0}
    """
    merged: dict[str, float] = {}
    for name in sorted(set().union(*parts)):
        metric, slash, env_id = name.removeprefix("gem/").partition("/")
        having = [part for part in parts if name in part]
        if metric in ("episodes", "valid_episodes"):
            merged[name] = sum(part[name] for part in having)
        else:
            count = f"gem/{'episodes' if metric in FAILURES else 'valid_episodes'}{slash}{env_id}"
            merged[name] = sum(part[name] * part[count] for part in having) / sum(part[count] for part in having)
    return merged


def _means(episodes: Sequence[HasMetrics]) -> dict[str, float]:
    rows = [(episode.valid, episode.metrics()) for episode in episodes]
    names = rows[0][1] if rows else ()
    values = {name: [row[name] for valid, row in rows if valid or name in FAILURES] for name in names}
    return {name: sum(some) / len(some) for name, some in values.items() if some}
