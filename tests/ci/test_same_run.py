"""Where two runs part is found, and the quantity that differs first is named."""

import importlib.util
import json
import sys
from pathlib import Path

import pytest

np = pytest.importorskip("numpy")
pytest.importorskip("matplotlib")

spec = importlib.util.spec_from_file_location(
    "compare_runs", Path(__file__).parents[2] / "ci" / "same_run" / "compare_runs.py"
)
compare_runs = sys.modules["compare_runs"] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(compare_runs)

STEPS = 4


def write(folder, change=lambda number, step: step):
    """Write a run of which ``change`` may change a step."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    weights = rng.normal(size=50)
    for number in range(STEPS):
        ids = rng.integers(0, 9, (3, 6)).tolist()
        rows = [{"ids": own, "mask": [0, 0, 1, 1, 0, 1], "advantages": [0.5] * 3, "margins": [1, 2, 3]} for own in ids]
        gradient = rng.normal(size=50)
        step = change(number, {"rows": [*rows, rows[0]], "gradient": gradient, "weights": weights.copy()})
        (folder / f"{number}.json").write_text(json.dumps({"rows": step["rows"], "returns": [1.0]}))
        np.savez(folder / f"{number}.npz", gradient=step["gradient"], weights=step["weights"])
        weights -= 0.01 * np.sign(gradient)
    return folder


def why(tmp_path, change):
    return compare_runs.compare(write(tmp_path / "one"), write(tmp_path / "other", change), STEPS)


def test_equal_runs(tmp_path):
    found = why(tmp_path, lambda number, step: step)
    assert (found.equal, found.shares, found.distances) == (STEPS, [1.0] * STEPS, [0.0] * STEPS)
    assert found.why == "all 4 steps are equal; the parameters differ by 0e+00 before the last"


def test_a_token(tmp_path):
    def change(number, step):
        if number >= 2:
            step["rows"][1] = {**step["rows"][1], "ids": [*step["rows"][1]["ids"][:3], 10, 1, 1]}
        return step

    found = why(tmp_path, change)
    assert (found.equal, found.shares) == (2, [1.0, 1.0, 0.75, 0.75])
    assert "step 3: token 2 of an episode differs, which had won by 2" in found.why


def test_an_episode_once_more_in_place_of_another(tmp_path):
    def change(number, step):
        return {**step, "rows": [*step["rows"][:3], step["rows"][1]]}

    assert why(tmp_path, change).shares == [0.75] * STEPS


def test_an_observation(tmp_path):
    def change(number, step):
        step["rows"][1] = {**step["rows"][1], "ids": [*step["rows"][1]["ids"][:4], 10, 1]}
        return step

    assert "step 1: an observation differs, after 2 sampled tokens" in why(tmp_path, change).why


def test_an_advantage_comes_first(tmp_path):
    def change(number, step):
        rows = [{**row, "advantages": [0.6] * 3} for row in step["rows"]]
        return {**step, "rows": rows, "gradient": 2 * step["gradient"]}

    assert "step 1: the episodes are equal, an advantage differs by 0.1" in why(tmp_path, change).why


def test_a_gradient(tmp_path):
    def change(number, step):
        return {**step, "gradient": step["gradient"] * (1.5 if number else 1)}

    assert "step 2: episodes and advantages are equal, the gradient differs by 0.5" in why(tmp_path, change).why


def test_an_update(tmp_path):
    found = why(tmp_path, lambda number, step: {**step, "weights": step["weights"] * 0.999**number})
    assert "step 1: the gradients are equal, the update differs by 0.09" in found.why


def test_what_follows_from_other_parameters_is_no_reason(tmp_path):
    def change(number, step):
        return {**step, "weights": step["weights"] + 1e-5 * number, "gradient": step["gradient"] * (1 + 0.02 * number)}

    assert why(tmp_path, change).why.startswith("all 4 steps are equal; the parameters differ by 3e-05 before the last")
