"""Episodes as trajectories in ATIF, the Agent Trajectory Interchange Format.

The format is that of https://github.com/harbor-framework/harbor/blob/main/rfcs/0001-trajectory-format.md, for which
the package ``atif`` has models.

==========================  ====================================================================
episode                     trajectory
==========================  ====================================================================
first observation           the first step, from the user
a turn                      a step of the agent
its action, observation     ``message``, ``observation``
its full text               ``extra`` of the step, where it is more than the action
its ids, log-probabilities  ``metrics``: ``prompt_token_ids``, ``completion_token_ids``, ``logprobs``
its reward, end and info    ``extra`` of the step
task, truncation, error     ``extra`` of the trajectory
``Episode.metrics()``       ``final_metrics.extra``
==========================  ====================================================================
"""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

from gem import __version__
from gem.rollout.episode import Episode, Turn, plain_json

SCHEMA_VERSION = "ATIF-v1.7"  # what 1.8 adds is sound


def to_atif(episode: Episode) -> dict[str, Any]:
    """Return an episode as a trajectory: JSON data, from which nothing of the episode is missing.

    A turn's ``prompt_token_ids`` are all that the model saw in it. Fields without a value are left out.

    >>> from gem.tasks import Task
    >>> episode = Episode(Task("x", 0), "Go.", [Turn([1, 2], [3], [-0.5], "stop", "left", "A wall.", reward=0.25)])
    >>> user, agent = to_atif(episode)["steps"]
    >>> user
    {'step_id': 1, 'source': 'user', 'message': 'Go.'}
    >>> agent["message"], agent["observation"]
    ('left', {'results': [{'content': 'A wall.'}]})
    >>> agent["metrics"]["completion_token_ids"], agent["metrics"]["logprobs"], agent["extra"]["reward"]
    ([3], [-0.5], 0.25)

    Args:
        episode: any.

    Raises:
        TypeError: an info holds something that is not JSON data.
    """
    steps = [{"step_id": 1, "source": "user", "message": episode.first_observation}]
    steps += [_step(number, turn) for number, turn in enumerate(episode.turns, start=2)]
    trajectory = {
        "schema_version": SCHEMA_VERSION,
        "agent": {"name": "gem", "version": __version__},
        "steps": steps,
        "final_metrics": {
            "total_prompt_tokens": sum(len(turn.prompt_ids) for turn in episode.turns),
            "total_completion_tokens": episode.sampled_tokens,
            "total_steps": len(steps),
            "extra": episode.metrics(),
        },
        "extra": {"task": asdict(episode.task), "truncation": episode.truncation, "error": episode.error},
    }
    return trajectory


def validate_atif(trajectory: dict[str, Any]) -> None:
    """Check a trajectory against the models of the package ``atif``.

    Args:
        trajectory: what :func:`to_atif` returned.

    Raises:
        ImportError: the package is not installed.
        ValueError: it is no trajectory, or holds a number that JSON has not (NaN, Infinity).
    """
    try:
        from atif import Trajectory
    except ImportError:
        raise ImportError("validating ATIF needs the package atif: pip install atif (Python 3.11 or later)") from None
    Trajectory.model_validate(trajectory)
    json.dumps(trajectory, allow_nan=False)  # other readers than Python's refuse them


def _step(number: int, turn: Turn) -> dict[str, Any]:
    metrics: dict[str, Any] = {
        "prompt_tokens": len(turn.prompt_ids),
        "completion_tokens": len(turn.response_ids),
        "prompt_token_ids": list(turn.prompt_ids),
        "completion_token_ids": list(turn.response_ids),
    }
    if turn.logprobs is not None:
        metrics["logprobs"] = list(turn.logprobs)
    step: dict[str, Any] = {"step_id": number, "source": "agent", "message": turn.action, "metrics": metrics}
    if turn.observation:
        step["observation"] = {"results": [{"content": turn.observation}]}
    ended = {"finish_reason": turn.finish_reason, "terminated": turn.terminated, "truncated": turn.truncated}
    info = json.loads(json.dumps(turn.info, default=plain_json))
    step["extra"] = {"reward": turn.reward, **ended, "info": info}
    if turn.full_text is not None:
        step["extra"]["full_text"] = turn.full_text
    return step
