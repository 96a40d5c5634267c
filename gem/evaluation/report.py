"""A report as one HTML page, which asks no server: results, comparisons, and every episode, turn by turn.

Episodes are in compressed chunks that the browser opens when it needs them, so that ten thousand of them open at once.
What models and environments wrote is shown as text, never taken as HTML.
"""

from __future__ import annotations

import base64
import gzip
import html
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from string import Template
from typing import Any

from gem.evaluation.store import Evaluation
from gem.evaluation.summary import compare_evaluations, comparison_rows, outcome, result_rows, summarize
from gem.files import replace_file
from gem.rollout.episode import Episode, Turn

CHUNK = 100
"""Episodes that are compressed together."""

_PAGE = Path(__file__).with_name("page")

Decode = Callable[[int], str]
"""From a token's id to its text."""


def write_report(
    path: str | Path, evaluation: Evaluation, others: dict[str, Evaluation] | None = None, decode: Decode | None = None
) -> None:
    """Write the report of an evaluation.

    Args:
        path: of the page.
        evaluation: what is reported.
        others: evaluations to compare it with, by the names to show.
        decode: shows tokens as text; without it they are ids.
    """
    summary = summarize(evaluation)
    episodes = [(unit[1], evaluation.episodes[unit]) for unit in evaluation.units if unit in evaluation.episodes]
    failed = [(unit[1], each) for unit in evaluation.missing for each in evaluation.failures.get(unit, [])[-1:]]
    tokens = "token ids as they were sampled" if summary["agent"]["exact_tokens"] else "text, without token ids"
    results = [_results(summary), *(_comparison(name, evaluation, other) for name, other in (others or {}).items())]
    title = f"Evaluation of {summary['agent']['name']}"
    _write(path, title, f"The episodes hold {tokens}.", "".join(results), [*episodes, *failed], decode)


def write_view(path: str | Path, title: str, episodes: Sequence[Episode], decode: Decode | None = None) -> None:
    """Write a page with any episodes, a trainer's say; arguments as for :func:`write_report`."""
    _write(path, title, f"{len(episodes)} episodes.", "", [(0, episode) for episode in episodes], decode)


def _write(
    path: str | Path,
    title: str,
    subtitle: str,
    results: str,
    episodes: Sequence[tuple[int, Episode]],
    decode: Decode | None,
) -> None:
    chunks = []
    for number, start in enumerate(range(0, len(episodes), CHUNK)):
        rows = json.dumps([_row(episode, decode) for _, episode in episodes[start : start + CHUNK]])
        packed = base64.b64encode(gzip.compress(rows.encode(), 6, mtime=0)).decode()
        chunks.append(f'<script id="chunk-{number}" type="text/plain">{packed}</script>')
    index = json.dumps(_index(episodes), separators=(",", ":")).replace("<", "\\u003c")  # no </script> in it
    parts = {name: (_PAGE / f"report.{kind}").read_text() for name, kind in (("style", "css"), ("script", "js"))}
    page = Template((_PAGE / "report.html").read_text()).substitute(
        title=html.escape(title),
        subtitle=html.escape(subtitle),
        results=results,
        index=index,
        chunks="\n".join(chunks),
        **parts,
    )
    replace_file(path, page)


def _index(episodes: Sequence[tuple[int, Episode]]) -> dict[str, Any]:
    """Return a column for each thing that the list of episodes shows."""
    envs = sorted({episode.task.env_id for _, episode in episodes})
    outcomes = sorted({outcome(episode) for _, episode in episodes})
    return {
        "chunk": CHUNK,
        "samples": 1 + max((sample for sample, _ in episodes), default=0),
        "envs": envs,
        "outcomes": outcomes,
        "env": [envs.index(episode.task.env_id) for _, episode in episodes],
        "outcome": [outcomes.index(outcome(episode)) for _, episode in episodes],
        "seed": [episode.task.seed for _, episode in episodes],
        "sample": [sample for sample, _ in episodes],
        "return": [round(episode.total_reward, 6) for _, episode in episodes],
    }


def _row(episode: Episode, decode: Decode | None) -> dict[str, Any]:
    turns = [_turn(turn, decode) for turn in episode.turns]
    return {"first": episode.first_observation, "error": episode.error, "turns": turns}


def _turn(turn: Turn, decode: Decode | None) -> dict[str, Any]:
    ids = list(turn.response_ids)
    row = {
        "text": turn.action if turn.full_text is None else turn.full_text,
        "observation": turn.observation,
        "reward": turn.reward,
        "end": "terminated" if turn.terminated else "truncated" if turn.truncated else "",
        "finish": turn.finish_reason,
        "prompt": len(turn.prompt_ids),
        "ids": ids,
    }
    if turn.logprobs is not None:
        row["logprobs"] = [round(each, 5) for each in turn.logprobs]
    if decode is not None:
        row["tokens"] = [decode(each) for each in ids]
    return row


def _results(summary: dict[str, Any]) -> str:
    note = f"Intervals of {summary['level']:.0%}, by task. Failed episodes are not the model's doing, and not scored."
    plot = _plot({env_id: each["success"] for env_id, each in summary["environments"].items()})
    return f'<section><h2>Results</h2>{_table(result_rows(summary))}<p class="quiet">{note}</p>{plot}</section>'


def _comparison(name: str, evaluation: Evaluation, other: Evaluation) -> str:
    rows = comparison_rows(compare_evaluations(other, evaluation))
    note = "Success rates, paired by task; a positive difference says that this evaluation is better."
    return f'<section><h2>Compared with {html.escape(name)}</h2>{_table(rows)}<p class="quiet">{note}</p></section>'


def _table(rows: Sequence[Sequence[str]]) -> str:
    lines = [
        "<tr>" + "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in row) + "</tr>"
        for tag, row in zip(["th", *["td"] * (len(rows) - 1)], rows, strict=True)
    ]
    return f'<div class="wide"><table>{"".join(lines)}</table></div>'


def _plot(estimates: dict[str, Any]) -> str:
    """Return a picture of success rates and their intervals."""
    drawn = {env_id: each for env_id, each in estimates.items() if each is not None and each["low"] is not None}
    if not drawn:
        return ""
    left, width, step = 260, 460, 22
    height = step * len(drawn) + 30
    lines = [
        f'<line x1="{left + x * width}" x2="{left + x * width}" y1="0" y2="{height - 24}" stroke="var(--line)"/>'
        f'<text x="{left + x * width}" y="{height - 8}" text-anchor="middle">{x:g}</text>'
        for x in (0, 0.25, 0.5, 0.75, 1)
    ]
    for number, (env_id, each) in enumerate(drawn.items()):
        y = step * number + 14
        low, mean, high = (left + each[name] * width for name in ("low", "mean", "high"))
        lines.append(
            f'<text x="{left - 10}" y="{y + 4}" text-anchor="end">{html.escape(env_id)}</text>'
            f'<line x1="{low:.1f}" x2="{high:.1f}" y1="{y}" y2="{y}" stroke="var(--link)" stroke-width="3"/>'
            f'<circle cx="{mean:.1f}" cy="{y}" r="4" fill="var(--link)"/>'
        )
    size = f'width="{left + width + 30}" height="{height}" viewBox="0 0 {left + width + 30} {height}"'
    label = 'role="img" aria-label="Success rates and their intervals"'
    return f'<div class="wide"><svg {size} {label}>{"".join(lines)}</svg></div>'
