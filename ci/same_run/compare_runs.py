"""Where do runs part, and why? Compares the runs of a folder with the first trainer's, and plots them.

    python ci/same_run/compare_runs.py report/same-run --trainers trl verl --seeds 0 1 --steps 40

Exits with 1 if two runs differ in their first ten steps.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("Agg")
import matplotlib.pyplot as plt
import numpy as np

STEPS = 10
"""Steps in which all sampled tokens must be equal, with ``WEIGHTS`` after them."""

WEIGHTS = 1e-4
"""By how much the parameters may differ after them, relatively."""

ADVANTAGE, VECTOR = 1e-5, 2e-3
"""From which difference on an advantage (absolutely), a gradient or an update (relatively) is not the same."""

SENSITIVITY = 1e4
"""By how much more than the parameters before it a gradient or an update may differ: then it follows from them."""

SMOOTH = 6
"""Steps whose returns are averaged for the plot."""

NAMES = {"trl": "TRL", "verl": "verl", "openrlhf": "OpenRLHF", "oat": "Oat", "rl2": "RL2"}


@dataclass
class Step:
    """What a trainer did in a step."""

    rows: list[dict[str, Any]]
    returns: list[float]
    gradient: np.ndarray
    weights: np.ndarray

    @classmethod
    def read(cls, folder: Path, number: int) -> Step:
        text, arrays = json.loads((folder / f"{number}.json").read_text()), np.load(folder / f"{number}.npz")
        return cls(text["rows"], text["returns"], arrays["gradient"], arrays["weights"])


@dataclass
class Comparison:
    """How far two runs are the same.

    Attributes:
        equal: steps until the first in which a sampled token differs.
        shares: of each step the share of rows that are equal.
        distances: of each step the distance of the parameters before it, relatively.
        why: in one line.
    """

    equal: int
    shares: list[float]
    distances: list[float]
    why: str


def relative(one: np.ndarray, other: np.ndarray) -> float:
    """Return the distance of two vectors over the length of the first; 0 if both are 0."""
    length, distance = (float(np.linalg.norm(each)) for each in (one, one - other))
    return distance / length if length else float(distance > 0)


def compare(first: Path, other: Path, steps: int) -> Comparison:
    """Compare two runs step by step."""
    shares, distances, why = [], [], ""
    equal = None
    before: tuple[Step, Step] | None = None
    for number in range(steps):
        a, b = Step.read(first, number), Step.read(other, number)
        if before is not None and not why:
            moves = before[0].weights - a.weights, before[1].weights - b.weights
            if (by := relative(*moves)) > max(VECTOR, SENSITIVITY * distances[-1]):
                why = f"step {number}: the gradients are equal, the update differs by {by:.1g}"
        distances.append(relative(a.weights, b.weights))
        ours, theirs = _others(a, b), _others(b, a)
        most = max(len(a.rows), len(b.rows))
        shares.append(1 - max(len(ours), len(theirs)) / max(most, 1))
        if ours or theirs:
            equal = number if equal is None else equal
            why = why or _first_difference(ours, theirs, number + 1, distances[-1])
        elif not why:
            why = _not_the_same(a, b, number + 1, distances[-1])
        before = a, b
    end = f"the parameters differ by {distances[-1]:.0e} before the last"
    if equal is None:
        return Comparison(steps, shares, distances, f"all {steps} steps are equal; {end}" + (f"; {why}" if why else ""))
    return Comparison(equal, shares, distances, f"equal until step {equal}; {why}; {end}")


def _others(one: Step, other: Step) -> list[dict[str, Any]]:
    """Return the rows of a step that the other does not have, or not as often."""
    there = Counter((*row["ids"], *row["mask"]) for row in other.rows)
    found = []
    for row in one.rows:
        key = (*row["ids"], *row["mask"])
        if not there[key]:
            found.append(row)
        there[key] -= there[key] > 0
    return found


def _not_the_same(a: Step, b: Step, number: int, distance: float) -> str:
    """Return what differs in a step of equal episodes; "" if nothing does."""
    pairs = zip(a.rows, b.rows, strict=True)
    differences = [np.abs(np.subtract(x["advantages"], y["advantages"])).max(initial=0) for x, y in pairs]
    by = max(map(float, differences), default=0.0)
    if by > ADVANTAGE:
        return f"step {number}: the episodes are equal, an advantage differs by {by:.1g}"
    if (by := relative(a.gradient, b.gradient)) > max(VECTOR, SENSITIVITY * distance):
        return f"step {number}: episodes and advantages are equal, the gradient differs by {by:.1g}"
    return ""


def _first_difference(ours: list[dict[str, Any]], theirs: list[dict[str, Any]], number: int, distance: float) -> str:
    """Return where the episodes of a step part: the closest pair, and by how little the token had won."""
    if not ours or not theirs:
        return f"step {number}: one has {abs(len(ours) - len(theirs))} episodes more"

    def agreed(x: dict[str, Any], y: dict[str, Any]) -> int:
        pairs = zip(x["ids"], y["ids"], strict=False)
        return next((i for i, (one, other) in enumerate(pairs) if one != other), min(len(x["ids"]), len(y["ids"])))

    x, y = max(((x, y) for x in ours for y in theirs), key=lambda pair: agreed(*pair))
    place = agreed(x, y)
    sampled = sum(x["mask"][:place])
    if place == len(x["mask"]) or not x["mask"][place]:
        return f"step {number}: an observation differs, after {sampled} sampled tokens"
    return (
        f"step {number}: token {sampled + 1} of an episode differs, which had won by {x['margins'][sampled]:.1g}; "
        f"the parameters differed by {distance:.0e}"
    )


def plot(folder: Path, trainers: list[str], seeds: list[int], comparisons: dict[Any, Comparison], steps: int) -> None:
    """Plot returns and distances of all runs; curves that lie on each other are drawn thinner and thinner."""
    figure, (above, below) = plt.subplots(2, 1, figsize=(7, 5.5), sharex=True, layout="constrained")
    for i, trainer in enumerate(trainers):
        for seed in seeds:
            runs = [Step.read(folder / str(seed) / trainer, number).returns for number in range(steps)]
            means = [np.mean(np.concatenate(runs[max(0, end - SMOOTH) : end])) for end in range(1, steps + 1)]
            style = {"color": f"C{i}", "linewidth": 9 - 2 * i, "alpha": 0.6}
            above.plot(range(1, steps + 1), means, label=NAMES[trainer] if seed == seeds[0] else None, **style)
            if (trainer, seed) in comparisons:
                own = {"color": f"C{i}", "linewidth": 1.5, "linestyle": "-" if seed == seeds[0] else "--"}
                distances = np.maximum(comparisons[trainer, seed].distances, 1e-10)
                below.plot(range(1, steps + 1), distances, label=f"{NAMES[trainer]}, seed {seed}", **own)
    above.set_title(f"the same training run, in each trainer's own code; {len(seeds)} seeds", fontsize="medium")
    above.set_ylabel(f"mean return, last {SMOOTH} steps")
    above.legend(ncols=len(trainers), fontsize="small", loc="lower right")
    below.set_yscale("log")
    below.set_ylabel(f"parameters: distance from {NAMES[trainers[0]]}'s")
    below.set_xlabel("step")
    below.axhline(WEIGHTS, color="gray", linewidth=0.8)
    below.legend(ncols=2, fontsize="x-small")
    figure.savefig(folder / "same-run.png", dpi=150)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--trainers", nargs="+", required=True)
    parser.add_argument("--seeds", nargs="+", type=int, required=True)
    parser.add_argument("--steps", type=int, required=True)
    args = parser.parse_args()
    first, *others = args.trainers
    comparisons, failed = {}, False
    for seed in args.seeds:
        for other in others:
            runs = (args.folder / str(seed) / name for name in (first, other))
            comparison = comparisons[other, seed] = compare(*runs, args.steps)
            early = min(STEPS, args.steps)
            bad = comparison.equal < early or max(comparison.distances[: early + 1]) > WEIGHTS
            failed |= bad
            print(f"{'X' if bad else '='} seed {seed}, {other} and {first}: {comparison.why}", flush=True)
    plot(args.folder, args.trainers, args.seeds, comparisons, args.steps)
    found = [{"trainer": name, "seed": seed, **vars(comparison)} for (name, seed), comparison in comparisons.items()]
    (args.folder / "same-run.json").write_text(json.dumps(found, indent=1) + "\n")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
