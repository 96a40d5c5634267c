"""Rollouts: episodes in tokens, of any environment with any engine.

An *engine* is what a trainer supplies: prompt ids in, sampled ids out. A *renderer* turns observations into ids
with the tokenizer's own chat template. The *runner* runs one episode for each *task* with both, and returns
*episodes*, whose ids, masks, rewards and log-probabilities every adapter passes on unchanged.

==========  =====================================================================================
episode     :class:`Turn`, :class:`Episode`, its two views as training data, JSON lines
tokens      ids that an episode stores once: read-only views, to be used like lists
rendering   observations to ids: :class:`ChatRenderer`
full_render where a chat template rewrites earlier turns
engine      :class:`Engine`: what samples the tokens
limits      :class:`Limits`: what ends an episode from outside
runner      :func:`run_episode`, :func:`run_episodes` and :class:`EpisodeRunner`
execution   where an environment runs: inline, awaited, in a thread or in a process
checks      :func:`check_tasks`, :func:`drop_overlong`: before training
batching    :class:`GatheringEngine`, :class:`BatchedRollout`: generating a batch at a time
stepped     :class:`SteppedEpisode`: an episode that the caller drives turn by turn
returns     reference implementations of returns, ReBN, GAE and group advantages
recorder    episodes in a folder, from many processes and runs
metrics     means over a batch of episodes, and for each environment id
rows        tasks as rows of each trainer's data set
replay      does the environment still return what an episode recorded?
diff, atif  where two episodes differ; episodes in an interchange format
==========  =====================================================================================
"""

from gem.rollout.batching import BatchedRollout, GatheringEngine, Request
from gem.rollout.checks import ContextTooSmall, check_tasks, drop_overlong
from gem.rollout.engine import Engine, Response
from gem.rollout.episode import (
    INVALID,
    Episode,
    OnError,
    TokenSequence,
    Transition,
    Turn,
    check_on_error,
    read_jsonl,
    write_jsonl,
)
from gem.rollout.full_render import RenderDifference, render_differences
from gem.rollout.limits import Limits
from gem.rollout.metrics import mean_metrics
from gem.rollout.recorder import Run, append_episode, begin_run, current_run, read_episodes
from gem.rollout.rendering import ChatRenderer, shared_renderer
from gem.rollout.replay import replay
from gem.rollout.returns import (
    check_gamma,
    discounted_returns,
    gae,
    group_advantages,
    rebn,
    rebn_of_mask,
    spread_over_tokens,
)
from gem.rollout.runner import EpisodeRunner, run_episode, run_episodes, run_turns, shared_runner
from gem.rollout.stepped import SteppedEpisode

__all__ = [
    "INVALID",
    "BatchedRollout",
    "ChatRenderer",
    "ContextTooSmall",
    "Engine",
    "Episode",
    "EpisodeRunner",
    "GatheringEngine",
    "Limits",
    "OnError",
    "RenderDifference",
    "Request",
    "Response",
    "Run",
    "SteppedEpisode",
    "TokenSequence",
    "Transition",
    "Turn",
    "append_episode",
    "begin_run",
    "check_gamma",
    "check_on_error",
    "check_tasks",
    "current_run",
    "discounted_returns",
    "drop_overlong",
    "gae",
    "group_advantages",
    "mean_metrics",
    "read_episodes",
    "read_jsonl",
    "rebn",
    "rebn_of_mask",
    "render_differences",
    "replay",
    "run_episode",
    "run_episodes",
    "run_turns",
    "shared_renderer",
    "shared_runner",
    "spread_over_tokens",
    "write_jsonl",
]
