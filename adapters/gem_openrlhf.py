r"""GEM for OpenRLHF: an agent executor.

.. code-block:: bash

    gem tasks env=game:GuessTheNumber-v1-easy,seeds=0:1024 --format openrlhf --out train.jsonl
    python -m openrlhf.cli.train_ppo_ray ... \
        --train.agent_func_path "$(python -m gem_openrlhf)" \
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
* **Rewards.** OpenRLHF keeps one scalar per episode, on its last sampled token: the discounted sum of its rewards.
  gamma is the row's, or the executor's; OpenRLHF's own counts tokens.
* **Failures.** An episode that the environment or the engine ended moves neither the policy nor a baseline, in any
  estimator: :mod:`gem_openrlhf_trainer` leaves it out, in the process that trains.
* **Stop tokens.** The tokens with which the chat template ends an answer are stop tokens of vLLM, beside its own: the
  end token of a base model is another one.
* ``--rollout.max_new_tokens`` is of one turn, ``--data.max_len`` of the whole episode. ``scores`` is success.
* ``truncated`` is what it is to OpenRLHF: whether the last answer was cut by its limit of tokens.

Works with OpenRLHF 0.11.x, synchronous and asynchronous.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

try:
    import ray
    from openrlhf.utils.agent import AgentExecutorBase
except ImportError as error:
    raise ImportError(
        f"gem_openrlhf needs OpenRLHF and what it needs ({error}): install gem-adapters[openrlhf]"
    ) from error

from gem.core import Env
from gem.rollout import (
    ChatRenderer,
    Episode,
    Limits,
    OnError,
    append_episode,
    begin_run,
    check_gamma,
    check_on_error,
    discounted_returns,
    shared_runner,
)
from gem.tasks import Task
from gem_openrlhf_trainer import Label
from gem_openrlhf_vllm import VLLM, WeightUpdates

if version("openrlhf").split(".")[:2] != ["0", "11"]:
    raise ImportError(
        f"gem_openrlhf works with OpenRLHF 0.11.x, and openrlhf {version('openrlhf')} is installed: "
        "install gem-adapters[openrlhf]"
    )

EPISODES = "GEM_EPISODES"
"""Names an environment variable: the folder where the executor leaves all episodes as JSON lines."""

RESUME = "GEM_RESUME"
"""Names an environment variable: the step of the checkpoint from which the training goes on."""


class GemAgentExecutor(AgentExecutorBase):
    """OpenRLHF's agent executor: runs an episode of a row's task.

    Args:
        max_turns: turns per episode, where the row has none; None for as many as the environment allows.
        gamma: discount per turn, where the row has none.
        step_timeout: seconds that a step of a blocking environment may take.
        system: a system message.
        tool_role: whether a tool's observation is a message of the tool role; see :class:`gem.rollout.ChatRenderer`.
        episodes: a folder for the episodes as JSON lines; :func:`gem.rollout.read_episodes` reads them. By default
            what the environment variable ``GEM_EPISODES`` names. It must be empty, unless ``resume`` is given.
        make_env: builds a task's environment; wrappers go in here.
        on_error: what is learned from an episode that the environment or the engine ended: nothing (``"mask"``), or
            the rewards that it had until then (``"keep"``).
        retries: how often an episode is begun again whose environment fails before the first sampled token.
        template_kwargs: arguments of the chat template, for example ``{"enable_thinking": False}``.
        allow_control_tokens: see :class:`gem.rollout.ChatRenderer`.
        resume: the step of the checkpoint that ``--ckpt.load_enable`` loads, from which the steps of the episodes are
            counted on. By default what the environment variable ``GEM_RESUME`` names.

    Raises:
        ValueError: an option's value makes no sense; or the folder of the episodes is not empty, and there is no
            ``resume``.
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
        *,
        on_error: OnError = "mask",
        retries: int = 2,
        template_kwargs: dict[str, Any] | None = None,
        allow_control_tokens: bool = False,
        resume: int | None = None,
    ) -> None:
        Limits(max_turns, step_timeout=step_timeout, retries=retries)  # refuses what is out of range
        self.max_turns = max_turns
        self.gamma = check_gamma(gamma)
        self.step_timeout = step_timeout
        self.system = system
        self.tool_role = tool_role
        self.episodes = episodes or os.environ.get(EPISODES)
        self.make_env = make_env
        self.on_error = check_on_error(on_error)
        self.retries = retries
        self.template_kwargs = template_kwargs
        self.allow_control_tokens = allow_control_tokens
        self.resume = int(os.environ[RESUME]) if resume is None and RESUME in os.environ else resume
        self._renderers: dict[str, ChatRenderer] = {}
        self._updates: WeightUpdates | None = None
        if self.episodes:
            _begin_run_once(Path(self.episodes), self.resume is not None)

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
        """Run an episode of a row's task, and return what OpenRLHF's executors return.

        Raises:
            ValueError: the label is no task; or a wrapper rewrites the history, and the episode is not one sequence.
        """
        task, options = Label(label).read()
        limits = Limits(
            options.get("max_turns", self.max_turns),
            sampling_params.max_tokens or max_length,
            max_context=max_length,
            step_timeout=self.step_timeout,
            retries=self.retries,
        )
        step = self._step(task, llm_engine) if self.episodes else None
        renderer = self._renderer(hf_tokenizer)
        engine = VLLM(llm_engine, sampling_params, renderer.stop_ids)
        episode = await shared_runner(renderer, limits, self.make_env).run(task, engine)
        if self.episodes:
            append_episode(self.episodes, episode, step)
        returns = discounted_returns(episode.rewards, options.get("gamma", self.gamma))
        tokens, action_ranges, logprobs = _sequence(episode)
        return {
            "prompt": prompt,
            "label": Label(label, masked=not episode.turns or (self.on_error == "mask" and not episode.valid)),
            "images": images,
            "mm_train_inputs": None,
            "reward": float(returns[0]) if episode.turns else 0.0,
            "scores": float(episode.success),
            "observation_tokens": tokens,
            "action_ranges": action_ranges,
            "rollout_log_probs": None if sampling_params.logprobs is None else logprobs,
            "truncated": bool(episode.turns) and episode.turns[-1].finish_reason == "length",
            "extra_logs": {f"gem/{name}": value for name, value in episode.metrics().items()},
        }

    def _renderer(self, tokenizer: Any) -> ChatRenderer:
        """Return the renderer of a tokenizer, of which OpenRLHF sends a copy with every row."""
        inner = getattr(tokenizer, "tokenizer", tokenizer)  # OpenRLHF sends a processor for a model of images
        key = f"{inner.name_or_path} {len(inner)} {tokenizer.chat_template}"
        if key not in self._renderers:
            self._renderers[key] = ChatRenderer(
                tokenizer, self.system, self.tool_role, self.template_kwargs, self.allow_control_tokens
            )
        return self._renderers[key]

    def _step(self, task: Task, llm_engine: Any) -> int:
        """Return the step that will learn from an episode, or, in an evaluation, the step after which it is run."""
        if self._updates is None:
            self._updates = WeightUpdates(llm_engine.llm)
        return (self.resume or 0) + self._updates.count + (task.split == "train")


class AgentExecutor(GemAgentExecutor):
    """The executor with its default options: what ``--train.agent_func_path`` looks for in this file."""

    def __init__(self) -> None:
        super().__init__()


def _sequence(episode: Episode) -> tuple[list[int], list[tuple[int, int]], list[float]]:
    """Return an episode's tokens, the range of each turn's sampled ones, and one log-probability per token."""
    if not episode.turns:  # OpenRLHF needs a row all the same; it has no weight
        return [0, 0], [(1, 2)], [0.0, 0.0]
    row = episode.as_sequence()
    first = len(row.prompt_ids)
    ranges = [
        (first + int(end) + 1 - len(turn.response_ids), first + int(end) + 1)
        for turn, end in zip(episode.turns, row.turn_ends, strict=True)
    ]
    logprobs = [0.0] * len(row.completion_ids) if row.logprobs is None else row.logprobs.tolist()
    return row.prompt_ids.tolist() + row.completion_ids.tolist(), ranges, [0.0] * first + logprobs


def _begin_run_once(folder: Path, resume: bool) -> None:
    """Begin a run of the folder of episodes, in the first of a training's vLLM engines.

    Raises:
        ValueError: see :func:`gem.rollout.begin_run`.
    """
    if not ray.is_initialized():
        begin_run(folder, resume)
        return
    context = ray.get_runtime_context()
    folder.mkdir(parents=True, exist_ok=True)
    begun = folder / f"begun-by-{context.get_session_name()}-{context.get_job_id()}"
    try:
        begun.touch(exist_ok=False)
    except FileExistsError:  # by another engine, all of which write their first episodes much later
        return
    try:
        begin_run(folder, resume)
    except ValueError:
        begun.unlink()
        raise


if __name__ == "__main__":
    print(Path(__file__).resolve())
