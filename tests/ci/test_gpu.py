"""The checks for a GPU, on a CPU: the same code, with the embedded model."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("trl")

SCRIPT = Path(__file__).parents[2] / "ci" / "gpu" / "trl_on_gpu.py"


def test_the_loss_computes_the_log_probabilities_of_sampling(tmp_path):
    command = [sys.executable, str(SCRIPT), "--quick", "--only", "agreement", "--out", str(tmp_path)]
    subprocess.run(command, check=True, timeout=300)
    found = json.loads((tmp_path / "results.json").read_text())["agreement_float32"]
    assert found["tokens"] > 500
    assert found["max_absolute"] < 1e-4
