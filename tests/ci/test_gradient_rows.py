"""A rule of TRL's loss that is broken turns exactly the rows red that depend on it."""

import inspect
import sys
import textwrap
from pathlib import Path

import pytest

pytest.importorskip("trl")
sys.path.insert(0, str(Path(__file__).parents[2] / "ci" / "conformance"))

import on_trl
from trl.trainer import grpo_trainer
from two_processes import SUFFIX

from gem.testing.conformance import check_gradient

ROWS = [name for name in on_trl.LOSSES if not name.endswith(SUFFIX)]  # those are in other processes
NO_MASK = ("/ mask.sum(-1).clamp(min=1.0)).mean()", "/ completion_mask.sum(-1).clamp(min=1.0)).mean()")
SHIFTED = (
    "advantages.unsqueeze(1)\n",
    "advantages.unsqueeze(1)\n    else:\n        advantages = advantages.roll(1, 1)\n",
)
SECOND_SCALED = ("    return loss\n", "    return loss * (1.1 if len(self.micro_batches) == 2 else 1.0)\n")


def broken(change):
    """Return TRL's loss with a part of its source replaced."""
    source = textwrap.dedent(inspect.getsource(grpo_trainer.GRPOTrainer._compute_loss))
    assert source.count(change[0]) == 1
    names = dict(vars(grpo_trainer))
    exec(source.replace(*change), names)
    return names["_compute_loss"]


@pytest.mark.parametrize(
    ("change", "red"),
    [
        (NO_MASK, [name for name in ROWS if name.startswith("loss_type=grpo")]),
        (SHIFTED, [name for name in ROWS if name.startswith("ReBN")]),
        (SECOND_SCALED, [name for name in ROWS if "micro-batches" in name]),
    ],
    ids=["the mask left out of a denominator", "advantages shifted by a token", "a micro-batch scaled"],
)
def test_a_broken_rule_turns_its_rows_red(change, red, monkeypatch):
    monkeypatch.setattr(grpo_trainer.GRPOTrainer, "_compute_loss", broken(change))
    harness = on_trl.TRLHarness()
    cells = [check_gradient(harness, name, harness.tokenizer()) for name in ROWS]
    assert [cell.name for cell in cells if cell.verdict == "broken"] == red
    assert all("cosine" in cell.detail for cell in cells)
