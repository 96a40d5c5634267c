"""The comparison: its matrix, its exit status, and a report of what failed."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

pytest.importorskip("matplotlib")

CI = Path(__file__).parents[2] / "ci"


def load(name):
    spec = importlib.util.spec_from_file_location(f"ci_{name}", CI / f"{name}.py")
    module = sys.modules[f"ci_{name}"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


compare, report = load("compare"), load("report")


def cell(name, verdict, detail=""):
    return {"name": name, "verdict": verdict, "detail": detail, "seconds": 0.1}


def conformance(*cells, advantages=(), gradients=(), updates=(), version="1.0"):
    kinds = {"cells": cells, "advantages": advantages, "gradients": gradients, "updates": updates}
    kinds = {kind: list(found) for kind, found in kinds.items()}
    return {"trainer": "", "version": version, **kinds}


CONFORMANCE = {
    "TRL": conformance(
        cell("one", "equal"),
        cell("two", "declared", "one scalar"),
        advantages=[cell("rebn", "equal", "exact")],
        gradients=[cell("dapo", "equal", "1 / tokens of the batch")],
        updates=[cell("equal settings", "equal", "AdamW")],
    ),
    "verl": conformance(cell("one", "equal"), cell("two", "broken", "token 3 <of> 7")),
}


def test_the_matrix_shows_every_cell_and_why():
    lines = compare.matrix(CONFORMANCE).splitlines()
    assert [line.split() for line in lines[1:4]] == [["TRL", "verl"], ["one", "=", "="], ["two", "~", "X"]]
    assert "  TRL ~ one scalar" in lines
    assert ["dapo", "="] in [line.split() for line in lines]  # and verl's is empty
    assert "  verl X two: token 3 <of> 7" in lines


def test_a_is_conformant_if_no_cell_is_broken_and_there_are_some():
    assert compare.is_conformant(CONFORMANCE["TRL"])
    assert not compare.is_conformant(CONFORMANCE["verl"])
    assert not compare.is_conformant(conformance(cell("one", "equal"), advantages=[cell("grpo", "broken")]))
    assert not compare.is_conformant(conformance(cell("one", "equal"), gradients=[cell("dapo", "broken")]))
    assert not compare.is_conformant(conformance(cell("one", "equal"), updates=[cell("defaults", "broken")]))
    assert not compare.is_conformant(conformance())


def fake_trainer(tmp_path, script):
    """Return a trainer whose `python` is this one, running a script instead of what it is given."""
    path = tmp_path / "fake"
    path.write_text(f'#!/bin/sh\nexec {sys.executable} {tmp_path / "fake.py"} "$@"\n')
    path.chmod(0o755)
    (tmp_path / "fake.py").write_text(script)
    return SimpleNamespace(name="TRL", key="trl", algorithm="grpo", python=str(path), cpu_shims="nothing")


def test_a_kit_that_does_not_end_is_a_broken_report_with_its_log(tmp_path):
    made = compare.run_conformance(fake_trainer(tmp_path, "raise SystemExit('no such package')"), tmp_path)
    assert not compare.is_conformant(made)
    assert "no such package" in made["error"]


ARGS = {"steps": 2, "env": "game:x"}

TRAINS = """
import json, sys
if "time_environment" in sys.argv[1]:
    print(json.dumps({"rollout": 1.0, "environment": 0.25}))
    raise SystemExit
folder = sys.argv[sys.argv.index("--out") + 1]
with open(folder + "/metrics.jsonl", "w") as file:
    for step, seconds in ((1, 9.0), (2, 3.0)):
        row = {"step": step, "success_rate": 0.5 * step, "sampled_tokens": 300, "seconds": seconds}
        file.write(json.dumps(row) + "\\n")
"""


def test_a_training_is_made_once_and_its_time_is_split(tmp_path, capsys):
    args = SimpleNamespace(**ARGS, out=tmp_path)
    trainer = fake_trainer(tmp_path, TRAINS)
    made = compare.run(trainer, 0, args)
    assert made["error"] == ""
    parts = made["split"]
    assert (parts["generate"], parts["environment"], parts["update"], parts["step"]) == (1.5, 0.5, 4.0, 3.0)
    assert parts["start and end"] == pytest.approx(made["seconds"] - 6.0)
    assert compare.run(trainer, 0, args) == made
    assert "is there already" in capsys.readouterr().out
    args.steps = 3  # another comparison
    (tmp_path / "fake.py").write_text("raise SystemExit('out of memory')")
    failed = compare.run(trainer, 0, args)
    assert "out of memory" in failed["error"]
    (tmp_path / "fake.py").write_text(TRAINS)
    assert compare.run(trainer, 0, args)["error"] == ""  # what failed is tried again


def test_the_page_has_everything_in_it(tmp_path):
    step = {"step": 1, "success_rate": 0.5, "sampled_tokens": 300, "seconds": 3.0}
    parts = {"start and end": 1.0, "generate": 2.0, "environment": 0.5, "update": 3.0, "step": 3.0}
    good = {"trainer": "TRL", "seed": 0, "seconds": 9.0, "peak_memory": 2e9, "error": "", "steps": [step] * 2}
    bad = {"trainer": "verl", "seed": 0, "seconds": 1.0, "peak_memory": 1e9, "error": "a <log>", "steps": []}
    made = {
        "made": "2026-01-01",
        "machine": "2 CPU cores",
        "env": "game:x",
        "steps": 2,
        "seeds": [0],
        "trainers": [{"name": name, "algorithm": "grpo", "cpu_shims": "nothing"} for name in CONFORMANCE],
        "conformance": CONFORMANCE,
        "runs": [{**good, "split": parts}, {**bad, "split": {}}],
    }
    (tmp_path / "report.json").write_text(json.dumps(made))
    subprocess.run([sys.executable, str(CI / "report.py"), str(tmp_path)], check=True)
    page = (tmp_path / "index.html").read_text()
    assert "src='data:image/png;base64," in page
    assert "http" not in page  # nothing is loaded from anywhere
    assert "token 3 &lt;of&gt; 7" in page
    assert "a &lt;log&gt;" in page
    assert "| verl | grpo | 0 | failed |" in (tmp_path / "report.md").read_text()
    assert (tmp_path / "overview.png").read_bytes().startswith(b"\x89PNG")


def test_memory_is_that_of_a_process_and_what_it_started():
    assert compare.resident(os.getpid()) > 10_000_000
    assert compare.resident(2**31) == 0
