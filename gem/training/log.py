"""TrainingLog: what an agent did while it was trained, in three files that look the same for every trainer.

* ``metrics.jsonl``: one line per step (:class:`StepMetrics`).
* ``episodes.jsonl``: all episodes of the first and the last step.
* ``curve.png``: success and return against steps.
"""

from __future__ import annotations

import io
import json
import math
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from gem.files import append_lines, hold_folder, replace_file
from gem.rollout.episode import Episode, write_jsonl
from gem.rollout.metrics import mean_metrics

WINDOW = 10
"""Steps over which curves and summaries average."""


@dataclass(frozen=True)
class StepMetrics:
    """A step of training.

    Attributes:
        step: from 1.
        mean_return: mean of the valid episodes' sums of rewards; None if no episode was valid.
        success_rate: share of the valid episodes that solved their task, or None.
        mean_turns: turns of a valid episode, or None.
        sampled_tokens: tokens that the model sampled in all episodes.
        environment_errors: episodes that ended because their environment failed.
        left_out: episodes that were not valid, for whatever reason; the means are of the others.
        seconds: wall-clock time of the step.
        by_env: where the episodes have several environment ids, the means and numbers of failures of each id; else {}.
    """

    step: int
    mean_return: float | None
    success_rate: float | None
    mean_turns: float | None
    sampled_tokens: int
    environment_errors: int
    left_out: int
    seconds: float
    by_env: dict[str, dict[str, Any]]


class TrainingLog:
    """Writes the files, and shows a progress bar. A context manager.

    Args:
        folder: where the files go; those of an earlier run are replaced.
        steps: how many there will be.
        title: over the curve.
    """

    def __init__(self, folder: str | Path, steps: int, title: str) -> None:
        self.folder = Path(folder)
        self.steps = steps
        self.title = title
        self.metrics: list[StepMetrics] = []
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        self._progress = Progress(*columns)
        self._bar = self._progress.add_task("training", total=steps)

    def __enter__(self) -> TrainingLog:
        """Begin; the first step's time counts from here.

        Raises:
            FolderInUse: another run writes there.
        """
        hold_folder(self.folder)
        for name in ("metrics.jsonl", "episodes.jsonl", "curve.png"):
            (self.folder / name).unlink(missing_ok=True)
        self._progress.start()
        self._since = time.perf_counter()
        return self

    def __exit__(self, *exc: object) -> None:
        """Draw the curve of what there is."""
        self._progress.stop()
        if self.metrics:
            self.plot()

    def record(self, episodes: Sequence[Episode]) -> StepMetrics:
        """Write a step that has ended.

        Args:
            episodes: those that the step learned from; at least one.
        """
        now = time.perf_counter()
        by_env: dict[str, list[Episode]] = {}
        for episode in episodes:
            by_env.setdefault(episode.task.env_id, []).append(episode)
        metrics = StepMetrics(
            step=len(self.metrics) + 1,
            **_numbers(episodes),
            sampled_tokens=sum(episode.sampled_tokens for episode in episodes),
            seconds=round(now - self._since, 3),
            by_env={env_id: _numbers(by_env[env_id]) for env_id in sorted(by_env)} if len(by_env) > 1 else {},
        )
        self._since = now
        self.metrics.append(metrics)
        append_lines(self.folder / "metrics.jsonl", [json.dumps(asdict(metrics))])
        if metrics.step in (1, self.steps):
            write_jsonl(self.folder / "episodes.jsonl", episodes, append=True)
        recent = _mean([m.success_rate for m in self.metrics[-WINDOW:]])
        self._progress.update(self._bar, advance=1, description=f"success {recent:.2f}")
        return metrics

    def summary(self) -> str:
        """Return the success rate of the first steps beside that of the last ones, in a sentence."""
        if not self.metrics:
            return "no step was made"
        window = min(WINDOW, max(1, len(self.metrics) // 2))
        before = _mean([m.success_rate for m in self.metrics[:window]])
        after = _mean([m.success_rate for m in self.metrics[-window:]])
        seconds = sum(m.seconds for m in self.metrics)
        tokens = sum(m.sampled_tokens for m in self.metrics)
        left_out = sum(m.left_out for m in self.metrics)
        failed = f"{left_out} episodes failed, and are not in it\n" if left_out else ""
        return (
            f"success rate: {before:.3f} in the first {window} steps, {after:.3f} in the last {window} "
            f"({after - before:+.3f})\n{failed}"
            f"{len(self.metrics)} steps in {seconds:.0f} s, "
            f"{tokens / max(seconds, 1e-9):.0f} sampled tokens per second; "
            f"results in {self.folder}"
        )

    def plot(self) -> None:
        """Draw ``curve.png``."""
        import matplotlib

        matplotlib.use("Agg")
        from matplotlib import pyplot

        figure, axes = pyplot.subplots(figsize=(7, 4), layout="constrained")
        steps = [m.step for m in self.metrics]
        for label, style, values in (
            ("success rate", "-", [m.success_rate for m in self.metrics]),
            ("mean return", "--", [m.mean_return for m in self.metrics]),
        ):
            smooth = [_mean(values[max(0, i + 1 - WINDOW) : i + 1]) for i in range(len(values))]
            (line,) = axes.plot(steps, smooth, style, label=f"{label}, mean of {WINDOW} steps")
            axes.plot(
                steps, [math.nan if value is None else value for value in values], color=line.get_color(), alpha=0.25
            )
        axes.set(xlabel="step", title=self.title)
        axes.grid(alpha=0.3)
        axes.legend()
        picture = io.BytesIO()
        figure.savefig(picture, dpi=150)
        replace_file(self.folder / "curve.png", picture.getvalue())
        pyplot.close(figure)


def _numbers(episodes: Sequence[Episode]) -> dict[str, Any]:
    means = mean_metrics(episodes)
    return {
        "mean_return": means.get("return"),
        "success_rate": means.get("success"),
        "mean_turns": means.get("turns"),
        "environment_errors": sum(episode.truncation == "error" for episode in episodes),
        "left_out": sum(not episode.valid for episode in episodes),
    }


def _mean(values: Sequence[float | None]) -> float:
    """Return the mean of those that there are; NaN if there is none."""
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else math.nan
