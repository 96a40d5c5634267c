"""Replay: does the environment still return what an episode recorded?"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from gem.core import Env, observation_text
from gem.rollout.episode import Episode, plain_json
from gem.tasks import Task


def replay(episode: Episode, make_env: Callable[[Task], Env] = Task.make) -> list[str]:
    """Step the environment with an episode's actions, and return what differs; an empty list if nothing does.

    The actions are what was passed to the environment, without the thoughts around them. The turn in which an
    environment failed, one that the engine aborted, and the token that was sampled for an episode that could not start
    are left out. An episode whose environment failed in its first turn, or could not start, is not replayed.

    Args:
        episode: what was recorded.
        make_env: what the recording used.
    """
    differences: list[str] = []

    def compare(what: str, recorded: Any, now: Any) -> None:
        # As JSON, since what was recorded may have been to a file and back, where a tuple becomes a list.
        if json.dumps(recorded, default=plain_json) != json.dumps(now, default=plain_json):
            differences.append(f"{what}: recorded {recorded!r}, now {now!r}")

    played = episode.turns
    if episode.truncation in ("error", "overlong") or (played and played[-1].finish_reason == "abort"):
        played = played[:-1]
    if episode.truncation == "error" and not played:
        return []
    with make_env(episode.task) as env:
        observation, info = env.reset(seed=episode.task.reset_seed)
        compare("first observation", episode.first_observation, observation_text(env, observation, info))
        for number, turn in enumerate(played, start=1):
            observation, reward, terminated, truncated, info = env.step(turn.action)
            compare(f"turn {number} observation", turn.observation, observation_text(env, observation, info))
            compare(f"turn {number} reward", turn.reward, float(reward))
            compare(f"turn {number} terminated", turn.terminated, terminated)
            compare(f"turn {number} truncated", turn.truncated, truncated)
            compare(f"turn {number} info", turn.info, info)
            if differences:
                break  # after the first difference every later one is a consequence
    return differences
