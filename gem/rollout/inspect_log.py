"""Episodes as a log of Inspect (the package ``inspect_ai``), which its viewer and its analysis read.

==========================  =====================================================================
episode                     sample
==========================  =====================================================================
environment, seed           ``id``; the n-th episode of a task is epoch n
observations, actions       ``messages``, of the user and the assistant
its ids, log-probabilities  ``metadata`` of the assistant's message
reward, info of a turn      ``metadata`` of the assistant's message
success, return             ``scores``, if the episode is valid
error of one that is not    ``error``
task, truncation, metrics   ``metadata`` of the sample
==========================  =====================================================================
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from gem.rollout.episode import Episode

CREATED = "1970-01-01T00:00:00+00:00"
"""Where no episode says when it began."""


def write_inspect_log(path: str | Path, episodes: Sequence[Episode], model: str = "gem/unknown") -> None:
    """Write episodes as a log of Inspect.

    Args:
        path: ends in ``.eval`` or ``.json``, which is the format.
        episodes: of any tasks.
        model: the name that the log shows.

    Raises:
        ImportError: ``inspect_ai`` is not installed.
        ValueError: the name of the file ends in something else.
    """
    if Path(path).suffix not in (".eval", ".json"):
        raise ValueError(f"a log of Inspect ends in .eval or .json, got {path}")
    try:
        from inspect_ai import log as inspect
    except ImportError:
        raise ImportError("writing a log of Inspect needs the package inspect_ai") from None
    counts: Counter[str] = Counter()
    samples = []
    for episode in episodes:
        name = f"{episode.task.env_id}/{episode.task.split}/{episode.task.seed}"
        counts[name] += 1
        samples.append(_sample(name, counts[name], episode))
    began = [episode.started for episode in episodes if episode.started]
    spec = inspect.EvalSpec(
        created=_time(min(began)) if began else CREATED,
        task="gem",
        dataset=inspect.EvalDataset(name="gem", samples=len(counts), sample_ids=list(counts)),
        model=model,
        config=inspect.EvalConfig(epochs=max(counts.values(), default=1)),
    )
    log = inspect.EvalLog(status="success", eval=spec, samples=samples, results=_results(episodes))
    inspect.write_eval_log(log, str(path))


def _sample(name: str, epoch: int, episode: Episode) -> Any:
    from inspect_ai.log import EvalError, EvalSample
    from inspect_ai.model import ChatMessageAssistant, ChatMessageUser, ModelOutput
    from inspect_ai.scorer import Score

    messages: list[Any] = [ChatMessageUser(content=episode.first_observation)]
    for turn in episode.turns:
        metadata = {
            "reward": turn.reward,
            "info": turn.info,
            "prompt_token_ids": list(turn.prompt_ids),
            "completion_token_ids": list(turn.response_ids),
            "logprobs": None if turn.logprobs is None else list(turn.logprobs),
        }
        messages.append(ChatMessageAssistant(content=turn.action, metadata=metadata))
        messages.append(ChatMessageUser(content=turn.observation))
    scores = {"success": Score(value=float(episode.success)), "return": Score(value=episode.total_reward)}
    error = EvalError(message=episode.error or str(episode.truncation), traceback="", traceback_ansi="")
    return EvalSample(
        id=name,
        epoch=epoch,
        input=episode.first_observation,
        target="",
        messages=messages,
        output=ModelOutput.from_content("gem", episode.turns[-1].action if episode.turns else ""),
        scores=scores if episode.valid else None,
        error=None if episode.valid else error,
        metadata={"task": asdict(episode.task), "truncation": episode.truncation, "metrics": episode.metrics()},
    )


def _results(episodes: Sequence[Episode]) -> Any:
    from inspect_ai.log import EvalMetric, EvalResults, EvalScore

    valid = [episode for episode in episodes if episode.valid]
    values = {"success": [float(e.success) for e in valid], "return": [e.total_reward for e in valid]}
    scores = [
        EvalScore(name=name, scorer=name, metrics={"mean": EvalMetric(name="mean", value=sum(each) / len(each))})
        for name, each in values.items()
        if each
    ]
    return EvalResults(total_samples=len(episodes), completed_samples=len(valid), scores=scores)


def _time(seconds: float) -> str:
    from datetime import datetime, timezone

    return datetime.fromtimestamp(seconds, timezone.utc).isoformat()
