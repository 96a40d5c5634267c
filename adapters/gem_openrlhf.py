r"""GEM for OpenRLHF: an agent executor, and the rows that it plays.

.. code-block:: bash

    python -m gem_openrlhf --env game:GuessTheNumber-v1-easy --seeds 0:1024 --out train.jsonl
    python -m openrlhf.cli.train_ppo_ray ... \
        --train.agent_func_path "$(python -m gem_openrlhf --path)" \
        --data.prompt_dataset train.jsonl --data.input_key prompt --data.label_key label \
        --algo.advantage.is_correction_level token

For options, name a file of your own instead:

.. code-block:: python

    from gem_openrlhf import GemAgentExecutor


    class AgentExecutor(GemAgentExecutor):
        def __init__(self):
            super().__init__(max_turns=8, gamma=0.95, make_env=my_env_with_wrappers)

How GEM maps to OpenRLHF:

* A row is a task: its label is the task as JSON, its prompt a name for it (unique, since OpenRLHF finds the data
  source of an evaluation by it; the model never sees it), its data source the environment's id.
  ``--rollout.n_samples_per_prompt`` episodes of a row begin from one seed.
* The ids of an episode reach the actor as they were sampled, with their action ranges; the log-probabilities are the
  sampler's where OpenRLHF asks for them (``is_correction_level`` other than ``off``), and 0 between turns.
* **Rewards.** OpenRLHF keeps one scalar an episode, on its last sampled token: the discounted sum of its rewards.
  gamma is the row's, or the executor's; OpenRLHF's own counts tokens. It clips rewards at ``--reward.clip_range``.
* ``--rollout.max_new_tokens`` is of one turn, ``--data.max_len`` of the whole episode. ``scores`` is success.
* ``truncated`` says that a limit ended the episode: turns, context, an abort or an environment that failed.

Works with OpenRLHF 0.11.x, synchronous and asynchronous.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
from collections.abc import Callable, Sequence
from copy import deepcopy
from functools import lru_cache
from pathlib import Path
from typing import Any

try:
    from openrlhf.utils.agent import AgentExecutorBase, AgentInstanceBase
except ImportError as error:
    raise ImportError(
        f"gem_openrlhf needs OpenRLHF and what it needs ({error}): pip install 'gem-adapters[openrlhf]'"
    ) from error

from gem.core import Env, observation_text
from gem.rollout import (
    ChatRenderer,
    Engine,
    Episode,
    Limits,
    Response,
    append_episode,
    discounted_returns,
    shared_player,
)
from gem.tasks import Task, load_tasks

EPISODES = "GEM_EPISODES"
"""Names an environment variable: the folder where the executor leaves all episodes as JSON lines."""


class GemAgentExecutor(AgentExecutorBase):
    """OpenRLHF's agent executor: plays the task of a row.

    Args:
        max_turns: turns an episode, where the row has none; None for as many as the environment allows.
        gamma: discount a turn, where the row has none.
        step_timeout: seconds that a step of a blocking environment may take.
        system: a system message.
        tool_role: whether a tool's observation is a message of the tool role; see :class:`gem.rollout.ChatRenderer`.
        episodes: a folder for the episodes as JSON lines; :func:`gem.rollout.read_episodes` reads them. By default
            what the environment variable ``GEM_EPISODES`` names.
        make_env: builds a task's environment; wrappers go in here.
        **template_kwargs: go to the chat template.
    """

    def __init__(
        self,
        max_turns: int | None = None,
        gamma: float = 1.0,
        step_timeout: float | None = 60.0,
        system: str | None = None,
        tool_role: bool = False,
        episodes: str | Path | None = None,
        make_env: Callable[[Task], Env] = Task.make,
        **template_kwargs: Any,
    ) -> None:
        Limits(max_turns, step_timeout=step_timeout)  # refuses what is not positive
        self.max_turns = max_turns
        self.gamma = gamma
        self.step_timeout = step_timeout
        self.system = system
        self.tool_role = tool_role
        self.episodes = episodes or os.environ.get(EPISODES)
        self.make_env = make_env
        self.template_kwargs = template_kwargs
        self._renderers: dict[str, ChatRenderer] = {}

    async def execute(
        self,
        prompt: str,
        label: str,
        sampling_params: Any,
        max_length: int,
        hf_tokenizer: Any,
        llm_engine: Any,
        images: Any = None,
    ) -> dict[str, Any]:
        """Play the task of a row, and return what OpenRLHF's executors return.

        Raises:
            ValueError: the label is no task; or its first prompt does not fit into ``max_length``; or a wrapper
                rewrites the history, and the episode is not one sequence.
        """
        task, options = _read_label(label)
        limits = Limits(
            options.get("max_turns", self.max_turns),
            sampling_params.max_tokens or max_length,
            max_context=max_length,
            step_timeout=self.step_timeout,
        )
        renderer = self._renderer(hf_tokenizer)
        engine = _VLLM(llm_engine, sampling_params)
        episode = await shared_player(renderer, limits, self.make_env).play(task, engine)
        if self.episodes:
            append_episode(self.episodes, episode)
        returns = discounted_returns(episode.rewards, options.get("gamma", self.gamma))
        tokens, action_ranges, logprobs = _sequence(episode, engine, hf_tokenizer.eos_token_id)
        return {
            "prompt": prompt,
            "label": label,
            "images": images,
            "mm_train_inputs": None,
            "reward": float(returns[0]) if episode.turns else 0.0,
            "scores": float(episode.success),
            "observation_tokens": tokens,
            "action_ranges": action_ranges,
            "rollout_log_probs": None if sampling_params.logprobs is None else logprobs,
            "truncated": episode.truncation is not None,
            "extra_logs": {f"gem/{name}": value for name, value in episode.metrics().items()},
        }

    def _renderer(self, tokenizer: Any) -> ChatRenderer:
        """Return the renderer of a tokenizer, of which OpenRLHF sends a copy with every row."""
        key = f"{tokenizer.name_or_path} {len(tokenizer)} {tokenizer.chat_template}"
        if key not in self._renderers:
            self._renderers[key] = ChatRenderer(tokenizer, self.system, self.tool_role, **self.template_kwargs)
        return self._renderers[key]


class AgentExecutor(GemAgentExecutor):
    """The executor with its default options: what ``--train.agent_func_path`` looks for in this file."""

    def __init__(self) -> None:
        super().__init__()


def _sequence(episode: Episode, engine: _VLLM, end_id: int) -> tuple[list[int], list[tuple[int, int]], list[float]]:
    """Return an episode's tokens, the range of each turn's sampled ones, and a log-probability a token."""
    if not episode.turns:  # the sampler gave nothing at all, and OpenRLHF needs a token to learn from
        n = len(engine.prompt_ids)
        return [*engine.prompt_ids, end_id], [(n, n + 1)], [0.0] * (n + 1)
    row = episode.as_sequence()
    first = len(row.prompt_ids)
    ranges = [
        (first + int(end) + 1 - len(turn.response_ids), first + int(end) + 1)
        for turn, end in zip(episode.turns, row.turn_ends, strict=True)
    ]
    logprobs = [0.0] * len(row.completion_ids) if row.logprobs is None else row.logprobs.tolist()
    return row.prompt_ids.tolist() + row.completion_ids.tolist(), ranges, [0.0] * first + logprobs


class _VLLM(Engine):
    """OpenRLHF's sampler, a vLLM engine in whose process the executor runs, as one episode asks it."""

    def __init__(self, engine: Any, sampling_params: Any) -> None:
        self.engine = engine
        self.sampling_params = sampling_params
        self.prompt_ids: list[int] = []

    async def generate(self, prompt_ids: Sequence[int], max_new_tokens: int, *, episode: int = 0) -> Response:
        self.prompt_ids = list(prompt_ids)
        params = deepcopy(self.sampling_params)  # one object serves the whole group
        params.max_tokens = max_new_tokens
        params.min_tokens = min(params.min_tokens, max_new_tokens)
        answer = (await self.engine.generate(self.prompt_ids, params)).outputs[0]
        ids = list(answer.token_ids)
        logprobs = None
        if params.logprobs is not None:
            logprobs = [of_token[token].logprob for token, of_token in zip(ids, answer.logprobs, strict=True)]
        if not ids or answer.finish_reason not in ("stop", "length"):
            return Response(ids, logprobs, "abort")
        return Response(ids, logprobs, answer.finish_reason)


class AgentInstance(AgentInstanceBase):
    """A task for OpenRLHF's stock ``MultiTurnAgentExecutor``, for those who build on it.

    .. code-block:: python

        class Instance(gem_openrlhf.AgentInstance):
            model = "Qwen/Qwen3-0.6B"  # whose tokenizer and chat template the conversation is made with


        class AgentExecutor(MultiTurnAgentExecutor):
            def __init__(self):
                super().__init__(Instance)

    That executor takes text and encodes it; it closes no cut turn, discounts nothing, sets no deadline to a step and
    does not survive one that raises. :class:`GemAgentExecutor` has none of these limits.

    Attributes:
        model: a name or folder that ``AutoTokenizer.from_pretrained`` takes; a subclass sets it.
        tool_role: whether a tool's observation is a message of the tool role; see :class:`gem.rollout.ChatRenderer`.
    """

    model: str = ""
    tool_role: bool = False

    def __init__(self, *_: Any, **__: Any) -> None:
        if not self.model:
            raise TypeError("a subclass of AgentInstance sets `model`, the name or folder of the tokenizer's model")
        self.renderer = _renderer_of(self.model, self.tool_role)
        self.total_reward, self.turns = 0.0, 0

    async def reset(self, states: dict[str, Any], **_: Any) -> dict[str, Any]:
        """Begin the task in ``states["label"]``; return the first prompt's text."""
        task, _options = _read_label(states["label"])
        self.env = await asyncio.to_thread(task.make)
        observation, info = await asyncio.to_thread(self.env.reset, task.reset_seed)
        return {"observation": self._text(self.renderer.first(observation_text(self.env, observation, info)))}

    async def step(self, state_dict: dict[str, Any], **_: Any) -> dict[str, Any]:
        """Take ``state_dict["action_text"]``; return reward, what is said next, and whether it is over."""
        import torch

        observation, reward, terminated, truncated, info = await asyncio.to_thread(
            self.env.step, state_dict["action_text"]
        )
        self.total_reward, self.turns = self.total_reward + reward, self.turns + 1
        done = terminated or truncated
        if done:
            await asyncio.to_thread(self.env.close)
        success = float(bool(info.get("success", terminated and self.total_reward >= 1)))
        role = self.renderer.role_of(info)
        end = [] if (end_id := self.renderer.end_ids[role]) is None else [end_id]
        feedback = self.renderer.bridge(end, observation_text(self.env, observation, info), role)
        return {
            "rewards": torch.tensor(float(reward)),
            "scores": torch.tensor(success),
            "environment_feedback": "" if done else self._text(feedback),
            "done": done,
            "extra_logs": {"gem/success": torch.tensor(success), "gem/turns": torch.tensor(float(self.turns))},
        }

    def _text(self, ids: list[int]) -> str:
        return self.renderer.tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)


@lru_cache(maxsize=4)
def _renderer_of(model: str, tool_role: bool) -> ChatRenderer:
    from transformers import AutoTokenizer

    return ChatRenderer(AutoTokenizer.from_pretrained(model), tool_role=tool_role)


def row(task: Task, gamma: float | None = None, max_turns: int | None = None) -> dict[str, str]:
    """Return a row of OpenRLHF's prompt data set.

    Args:
        task: what to play.
        gamma: discount a turn; None for the executor's.
        max_turns: turns an episode; None for the executor's.

    Returns:
        ``prompt`` (a name for the task), ``label`` (the task and the options, as JSON) and ``datasource``.
    """
    options = {name: value for name, value in (("gamma", gamma), ("max_turns", max_turns)) if value is not None}
    label = {**json.loads(task.to_json()), **options}
    kwargs = f" {json.dumps(task.env_kwargs, sort_keys=True)}" if task.env_kwargs else ""
    return {
        "prompt": f"gem:{task.split}:{task.env_id}#{task.seed}{kwargs}",
        "label": json.dumps(label, sort_keys=True),
        "datasource": task.env_id,
    }


def _read_label(label: str) -> tuple[Task, dict[str, Any]]:
    """Return a row's task and options.

    Raises:
        ValueError: the label is no task.
    """
    try:
        fields = json.loads(label)
        options = {name: fields.pop(name) for name in ("gamma", "max_turns") if name in fields}
        return Task(**fields), options
    except (TypeError, ValueError, AttributeError) as error:
        raise ValueError(
            f"the label {label!r} is no task ({error}): write the rows with `python -m gem_openrlhf`, and pass "
            "--data.input_key prompt --data.label_key label"
        ) from None


def main(arguments: Sequence[str] | None = None) -> None:
    """Write rows, or say where this file is."""
    parser = argparse.ArgumentParser(
        prog="python -m gem_openrlhf", description="Write rows for OpenRLHF's prompt data set."
    )
    parser.add_argument("--path", action="store_true", help="print the path of this file, for --train.agent_func_path")
    parser.add_argument("--env", help="a registered environment; `gem envs` lists them")
    parser.add_argument("--seeds", help="of the tasks, as first:end")
    parser.add_argument("--out", type=Path, help="the .jsonl file to write")
    parser.add_argument("--split", default="train", help="train, eval or test; splits share no episode")
    parser.add_argument("--env-kwargs", type=json.loads, default={}, help="arguments of the environment, as JSON")
    parser.add_argument("--gamma", type=float, help="discount a turn")
    parser.add_argument("--max-turns", type=int, help="turns an episode")
    args = parser.parse_args(arguments)
    if args.path:
        print(Path(__file__).resolve())
        return
    if not (args.env and args.seeds and args.out):
        parser.error("--env, --seeds and --out are needed (or --path)")
    try:
        tasks = load_tasks(f"env={args.env},seeds={args.seeds},split={args.split}", args.split)
        tasks = [Task(task.env_id, task.seed, args.env_kwargs, task.split) for task in tasks]
        tasks[0].make().close()  # refuses an environment or arguments that do not exist
    except (ValueError, TypeError, ImportError) as error:
        parser.error(str(error))
    rows = [json.dumps(row(task, args.gamma, args.max_turns)) for task in tasks]
    args.out.write_text("\n".join(rows) + "\n", encoding="utf-8")
    print(f"{len(rows)} tasks of {args.env} in {args.out}")


if __name__ == "__main__":
    main()
