"""Write the page, the text and the pictures of a comparison from its ``report.json``.

python ci/report.py report/
"""

from __future__ import annotations

import base64
import html
import io
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot

MARKS = {"equal": "=", "declared": "~", "broken": "✗", "": " "}
COLOURS = {"equal": "#d9f2d9", "declared": "#fff3c4", "broken": "#f7c6c5", "": "#eeeeee"}
WINDOW = 5
"""Steps over which the curves average."""

Rows = list[list[str]]


def main() -> None:
    folder = Path(sys.argv[1])
    report = json.loads((folder / "report.json").read_text())
    (folder / "curves.png").write_bytes(curves(report))
    (folder / "overview.png").write_bytes(overview(report))
    (folder / "index.html").write_text(page(report, (folder / "curves.png").read_bytes()))
    (folder / "report.md").write_text(text(report))
    print(f"{folder / 'index.html'}, {folder / 'report.md'}")


def trainers(report: dict[str, Any]) -> list[str]:
    return [trainer["name"] for trainer in report["trainers"]]


def cells(report: dict[str, Any], kind: str) -> tuple[list[str], dict[tuple[str, str], dict[str, Any]]]:
    """Return the names of a matrix's rows, and its cells by trainer and name."""
    found = {(name, cell["name"]): cell for name in trainers(report) for cell in report["conformance"][name][kind]}
    return list(dict.fromkeys(name for _, name in found)), found


def rates(report: dict[str, Any], trainer: str) -> list[list[float]]:
    """Return the success rates of each run of a trainer, step by step."""
    runs = [run for run in report["runs"] if run["trainer"] == trainer and not run["error"]]
    return [[success(step) for step in run["steps"]] for run in runs]


def success(step: dict[str, Any]) -> float:
    """Return a step's success rate; not a number if each of its episodes failed for another reason than the model."""
    return float("nan") if step["success_rate"] is None else step["success_rate"]


def smooth(values: Sequence[float]) -> list[float]:
    parts = [values[max(0, i + 1 - WINDOW) : i + 1] for i in range(len(values))]
    return [sum(part) / len(part) for part in parts]


def draw_curves(axes: Any, report: dict[str, Any]) -> None:
    for trainer in report["trainers"]:
        runs = [smooth(run) for run in rates(report, trainer["name"])]
        if not runs:
            continue
        middle = [sum(at) / len(at) for at in zip(*runs, strict=True)]
        steps = range(1, len(middle) + 1)
        (line,) = axes.plot(steps, middle, label=f"{trainer['name']}, {trainer['algorithm']}")
        if len(runs) > 1:
            low, high = ([pick(at) for at in zip(*runs, strict=True)] for pick in (min, max))
            axes.fill_between(steps, low, high, color=line.get_color(), alpha=0.2)
    seeds = len(report["seeds"])
    axes.set(xlabel="step", ylabel=f"success rate, mean of {WINDOW} steps", ylim=(0, 1.02))
    axes.set_title(f"{report['env']}, {seeds} seed{'s' if seeds > 1 else ''}", fontsize=10)
    axes.grid(alpha=0.3)
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.legend(fontsize=8, loc="lower right")


def curves(report: dict[str, Any]) -> bytes:
    figure, axes = pyplot.subplots(figsize=(8, 4), layout="constrained")
    draw_curves(axes, report)
    return as_png(figure)


def overview(report: dict[str, Any]) -> bytes:
    """Draw the matrix and the curves side by side, for a README."""
    names, found = cells(report, "cells")
    columns = trainers(report)
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(13, 1.2 + 0.2 * len(names)), layout="constrained")
    left.axis("off")
    table = left.table(
        cellText=[[MARKS[verdict(found, column, name)] for column in columns] for name in names],
        cellColours=[[COLOURS[verdict(found, column, name)] for column in columns] for name in names],
        rowLabels=names,
        colLabels=columns,
        cellLoc="center",
        bbox=(0, 0, 1, 1),
    )
    table.auto_set_font_size(False)
    table.set_fontsize(8)
    for cell in table.get_celld().values():
        cell.set_linewidth(0.4)
    left.set_title("=  the same as the episode     ~  differs exactly as declared     ✗  broken", fontsize=9, pad=12)
    draw_curves(right, report)
    versions = ", ".join(f"{name} {report['conformance'][name]['version']}" for name in columns)
    figure.suptitle(f"{report['made']}: {versions}", fontsize=9)
    return as_png(figure)


def verdict(found: dict[tuple[str, str], dict[str, Any]], trainer: str, name: str) -> str:
    cell = found.get((trainer, name))
    return cell["verdict"] if cell else ""


def as_png(figure: Any) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=130)
    pyplot.close(figure)
    return buffer.getvalue()


# Tables, as rows of text


def matrix(report: dict[str, Any], kind: str) -> Rows:
    names, found = cells(report, kind)
    rows = [["", *trainers(report)]]
    return rows + [[name, *(MARKS[verdict(found, t, name)] for t in trainers(report))] for name in names]


def speed(report: dict[str, Any]) -> Rows:
    head = ["trainer", "algorithm", "seed", "success, first 5 steps", "last 5", "sampled tokens/s", "s a step"]
    rows = [[*head, "total s", "peak memory, GB"]]
    for run in report["runs"]:
        algorithm = next(t["algorithm"] for t in report["trainers"] if t["name"] == run["trainer"])
        row = [run["trainer"], algorithm, str(run["seed"])]
        if run["error"]:
            rows.append([*row, "failed", "", "", "", f"{run['seconds']:.0f}", f"{run['peak_memory'] / 1e9:.1f}"])
            continue
        steps, step = run["steps"], run["split"]["step"]
        values = [success(s) for s in steps]
        tokens = sum(s["sampled_tokens"] for s in steps) / len(steps)
        ends = [f"{sum(part) / len(part):.3f}" for part in (values[:5], values[-5:])]
        per_second = f"{tokens / step:.0f}" if step else "-"
        row += [*ends, per_second, f"{step:.2f}", f"{run['seconds']:.0f}", f"{run['peak_memory'] / 1e9:.1f}"]
        rows.append(row)
    return rows


def split(report: dict[str, Any]) -> Rows:
    parts = ["start and end", "generate", "environment", "update"]
    rows = [["trainer", "seed", *(f"{part}, s" for part in parts)]]
    for run in report["runs"]:
        if not run["error"]:
            rows.append([run["trainer"], str(run["seed"]), *(f"{run['split'][part]:.1f}" for part in parts)])
    return rows


def notes(report: dict[str, Any]) -> list[str]:
    """Return what the marks mean, trainer by trainer."""
    lines = []
    for name in trainers(report):
        conformance = report["conformance"][name]
        for mark, kind in (("~", "declared"), ("✗", "broken")):
            parts = [cell for part in ("cells", "advantages", "gradients", "updates") for cell in conformance[part]]
            of_kind = [cell for cell in parts if cell["verdict"] == kind]
            for detail in dict.fromkeys(cell["detail"] for cell in of_kind):
                where = ", ".join(cell["name"] for cell in of_kind if cell["detail"] == detail)
                lines.append(f"{name} {mark} {detail}" + (f" ({where})" if kind == "broken" else ""))
        if conformance.get("error"):
            lines.append(f"{name} ✗ the conformance suite did not end: {conformance['error']}")
    return lines


def references(report: dict[str, Any], kind: str) -> list[str]:
    return [
        f"{name}, {cell['name']}: {cell['detail']}"
        for name in trainers(report)
        for cell in report["conformance"][name][kind]
    ]


ABOUT_UPDATES = (
    "The parameters after two updates of the trainer's own optimiser, against AdamW as it is declared, with the "
    "trainer's own gradients: equal within 1e-6 of the parameters, and 1e-3 of what has changed."
)

ABOUT_SPLIT = (
    "A step's rollout is measured by when its episodes started and ended, the environment by replaying the same "
    "episodes again without a model; both on the last step, times the number of steps. Trainers generate by different "
    "CPU shims, so these figures say what a run on this machine costs, not which trainer is faster on GPUs."
)


def page(report: dict[str, Any], curve: bytes) -> str:
    """Return the page; everything is in it."""
    image = base64.b64encode(curve).decode()
    versions = ", ".join(f"{name} {report['conformance'][name]['version']}" for name in trainers(report))
    cpu_shims = [["trainer", "its CPU shims"], *([t["name"], t["cpu_shims"]] for t in report["trainers"])]
    failed = [
        f"<h3>{html.escape(run['trainer'])}, seed {run['seed']}</h3><pre>{html.escape(run['error'])}</pre>"
        for run in report["runs"]
        if run["error"]
    ]
    parts = [
        "<!doctype html><html lang='en'><head><meta charset='utf-8'><title>GEM: the trainers compared</title>",
        f"<style>{STYLE}</style></head><body><main>",
        "<h1>The same episodes in every trainer</h1>",
        f"<p>{html.escape(report['made'])}; {html.escape(versions)}; {html.escape(report['machine'])}.</p>",
        "<h2>Conformance</h2><p>Each scenario is run through the trainer's own code, down to what it learns from: "
        "ids, mask, rewards, log-probabilities. <b>=</b> the same as the episode; <b>~</b> differs exactly as the "
        "adapter declares; <b>✗</b> broken.</p>",
        table(matrix(report, "cells"), marks=True),
        items(notes(report)),
        "<h2>What became of the rewards</h2><p>The trainer's own advantages of the same batch, against the reference "
        "in <code>gem.rollout</code>.</p>",
        table(matrix(report, "advantages"), marks=True),
        items(references(report, "advantages")),
        f"<h2>Gradients</h2><p>{ABOUT_GRADIENTS}</p>",
        table(matrix(report, "gradients"), marks=True),
        items(references(report, "gradients")),
        f"<h2>Updates</h2><p>{ABOUT_UPDATES}</p>",
        table(matrix(report, "updates"), marks=True),
        items(references(report, "updates")),
        f"<h2>Learning</h2><p>{html.escape(report['env'])}, {report['steps']} steps from the same checkpoint on the "
        f"same tasks.</p><img alt='success rate against steps' src='data:image/png;base64,{image}'>",
        table(speed(report)),
        "<h2>Where the time went</h2>",
        f"<p>{ABOUT_SPLIT}</p>",
        table(split(report)),
        "<h2>CPU shims</h2>",
        table(cpu_shims),
        *(["<h2>What failed</h2>", *failed] if failed else []),
        "</main></body></html>",
    ]
    return "\n".join(parts)


ABOUT_GRADIENTS = (
    "The gradient that each trainer's own loss has in one update, of all parameters in float32, against the sum over "
    "sampled tokens that is declared for it: weight times advantage times the gradient of the token's log-probability. "
    "Empty: not declared for this trainer."
)

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #222; background: #fff; margin: 0 }
main { max-width: 1100px; margin: 0 auto; padding: 24px }
table { border-collapse: collapse; margin: 12px 0 }
th, td { border: 1px solid #ccc; padding: 4px 10px; text-align: left }
td.mark { text-align: center; font-weight: bold; min-width: 64px }
td.failed { background: #f7c6c5 }
th { background: #f3f3f3 }
img { max-width: 100% }
pre { background: #f6f6f6; padding: 8px; overflow-x: auto; font-size: 12px }
"""


def table(rows: Rows, marks: bool = False) -> str:
    """Return a table; with marks, its cells are coloured."""
    by_mark = {mark: COLOURS[verdict] for verdict, mark in MARKS.items()}
    lines = ["<table><tr>" + "".join(f"<th>{html.escape(cell)}</th>" for cell in rows[0]) + "</tr>"]
    for row in rows[1:]:
        first = f"<td>{html.escape(row[0])}</td>"
        if marks:
            rest = [f"<td class='mark' style='background:{by_mark[cell]}'>{cell}</td>" for cell in row[1:]]
        else:
            rest = [f"<td{' class=failed' if cell == 'failed' else ''}>{html.escape(cell)}</td>" for cell in row[1:]]
        lines.append(f"<tr>{first}{''.join(rest)}</tr>")
    return "\n".join([*lines, "</table>"])


def items(lines: Sequence[str]) -> str:
    return "<ul>" + "".join(f"<li>{html.escape(line)}</li>" for line in lines) + "</ul>"


def text(report: dict[str, Any]) -> str:
    """Return the same as Markdown."""
    versions = ", ".join(f"{name} {report['conformance'][name]['version']}" for name in trainers(report))
    bullets = ["\n".join(f"- {line}" for line in lines) for lines in (notes(report), references(report, "advantages"))]
    parts = [
        "# The same episodes in every trainer",
        f"{report['made']}; {versions}; {report['machine']}.",
        "## Conformance",
        markdown(matrix(report, "cells")),
        bullets[0],
        "## What became of the rewards",
        markdown(matrix(report, "advantages")),
        bullets[1],
        f"## Gradients\n\n{ABOUT_GRADIENTS}",
        markdown(matrix(report, "gradients")),
        "\n".join(f"- {line}" for line in references(report, "gradients")),
        f"## Updates\n\n{ABOUT_UPDATES}",
        markdown(matrix(report, "updates")),
        "\n".join(f"- {line}" for line in references(report, "updates")),
        f"## Learning\n\n{report['env']}, {report['steps']} steps.\n\n![success rate](curves.png)",
        markdown(speed(report)),
        f"## Where the time went\n\n{ABOUT_SPLIT}",
        markdown(split(report)),
        "## CPU shims",
        "\n".join(f"- {t['name']}: {t['cpu_shims']}" for t in report["trainers"]),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def markdown(rows: Rows) -> str:
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join([lines[0], "|" + "---|" * len(rows[0]), *lines[1:]])


if __name__ == "__main__":
    main()
