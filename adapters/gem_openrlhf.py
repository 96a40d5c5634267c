r"""GEM for OpenRLHF: an agent executor, and the rows of its tasks.

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

import argparse
import asyncio
import json
import os
import weakref
from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import replace
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

try:
    import ray
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
    OnError,
    Response,
    append_episode,
    begin_run,
    check_gamma,
    check_on_error,
    check_tasks,
    discounted_returns,
    shared_runner,
)
from gem.sandbox import SandboxUnavailable
from gem.tasks import Task, load_tasks
from gem_openrlhf_trainer import Label

if version("openrlhf").split(".")[:2] != ["0", "11"]:
    raise ImportError(
        f"gem_openrlhf works with OpenRLHF 0.11.x, and openrlhf {version('openrlhf')} is installed: "
        "pip install 'gem-adapters[openrlhf]'"
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
        self._updates: _WeightUpdates | None = None
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
        engine = _VLLM(llm_engine, sampling_params, renderer.stop_ids)
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
            self._updates = _WeightUpdates(llm_engine.llm)
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


class _VLLM(Engine):
    """OpenRLHF's sampler, a vLLM engine in whose process the executor runs, as one episode asks it."""

    def __init__(self, engine: Any, sampling_params: Any, stop_ids: Sequence[int]) -> None:
        self.engine = engine
        self.stop_ids = frozenset(stop_ids)
        self.sampling_params = deepcopy(sampling_params)  # one object serves the whole group
        own = getattr(sampling_params, "stop_token_ids", None) or ()
        self.sampling_params.stop_token_ids = sorted(self.stop_ids.union(own))
        # vLLM has made another field of them already, of what may not be sampled before min_tokens.
        derived: set[int] = getattr(self.sampling_params, "all_stop_token_ids", set())
        derived.update(self.stop_ids)

    async def generate(self, prompt_ids: Sequence[int], max_new_tokens: int, *, episode: int = 0) -> Response:
        params = deepcopy(self.sampling_params)
        params.max_tokens = max_new_tokens
        params.min_tokens = min(params.min_tokens, max_new_tokens)
        answer = (await self.engine.generate(list(prompt_ids), params)).outputs[0]
        ids = list(answer.token_ids)
        logprobs = None
        if params.logprobs is not None:
            logprobs = [of_token[token].logprob for token, of_token in zip(ids, answer.logprobs, strict=True)]
        if not ids or answer.finish_reason not in ("stop", "length"):
            return Response(ids, logprobs, "abort")
        return Response(ids, logprobs, "stop" if ids[-1] in self.stop_ids else answer.finish_reason)


class _WeightUpdates:
    """Counts how often vLLM got the actor's weights: after every step, whose number OpenRLHF does not hand over.

    Args:
        engine: vLLM's asynchronous engine.

    Attributes:
        count: updates from now on.
    """

    def __init__(self, engine: Any) -> None:
        self.count = 0
        call = engine.collective_rpc

        async def counting(method: str, *others: Any, args: tuple[Any, ...] = (), **options: Any) -> Any:
            result = await call(method, *others, args=args, **options)
            if method in ("update_weight", "update_weight_cuda_ipc"):
                *_, is_last = args  # OpenRLHF has vLLM empty its cache after the last weight
                self.count += bool(is_last)
            return result

        engine.collective_rpc = counting


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


class AgentInstance(AgentInstanceBase):
    """A task for OpenRLHF's stock ``MultiTurnAgentExecutor``, for those who build on it.

    .. code-block:: python

        class Instance(gem_openrlhf.AgentInstance):
            model = "Qwen/Qwen3-0.6B"  # whose tokenizer and chat template the conversation is made with


        class AgentExecutor(MultiTurnAgentExecutor):
            def __init__(self):
                super().__init__(Instance)

    That executor takes text and encodes it, control tokens included, so an environment that writes them forges a turn;
    it closes no answer that its limit cut, discounts nothing, sets no deadline to a step, and does not survive one that
    raises. :class:`GemAgentExecutor` has none of these limits.

    Attributes:
        model: a name or folder that ``AutoTokenizer.from_pretrained`` takes; a subclass sets it.
        tool_role: whether a tool's observation is a message of the tool role; see :class:`gem.rollout.ChatRenderer`.
        template_kwargs: arguments of the chat template.
    """

    model: str = ""
    tool_role: bool = False
    template_kwargs: dict[str, Any] | None = None

    def __init__(self, *_: Any, **__: Any) -> None:
        if not self.model:
            raise TypeError("a subclass of AgentInstance sets `model`, the name or folder of the tokenizer's model")
        self.renderer = _renderer_of(self.model, self.tool_role, json.dumps(self.template_kwargs))
        self.total_reward, self.turns = 0.0, 0
        self.prompt_ids: list[int] = []
        """The end of the prompt of the next answer."""

    async def reset(self, states: dict[str, Any], **_: Any) -> dict[str, Any]:
        """Begin the task in ``states["label"]``; return the first prompt's text."""
        task = Label(states["label"]).task
        self.env = await asyncio.to_thread(task.make)
        # That executor may end an episode without a word: then the environment is closed with this object.
        self._close = weakref.finalize(self, self.env.close)
        observation, info = await asyncio.to_thread(self.env.reset, task.reset_seed)
        self.first_observation = observation_text(self.env, observation, info)
        self.prompt_ids = self.renderer.first(self.first_observation)
        return {"observation": self._text(self.prompt_ids)}

    async def step(self, state_dict: dict[str, Any], **_: Any) -> dict[str, Any]:
        """Take ``state_dict["action_text"]``; return reward, what is said next, and whether it is over."""
        import torch

        answer = self.renderer.parse(self.renderer.encode(state_dict["action_text"]), self.prompt_ids)
        observation, reward, terminated, truncated, info = await asyncio.to_thread(self.env.step, answer.action)
        self.total_reward, self.turns = self.total_reward + reward, self.turns + 1
        done = terminated or truncated
        if done:
            await asyncio.to_thread(self._close)
        success = float(bool(info.get("success", terminated and self.total_reward >= 1)))
        role = self.renderer.role_of(info)
        self.prompt_ids = self.renderer.bridge(
            self.renderer.end_of_turn(role),
            observation_text(self.env, observation, info),
            role,
            first=self.first_observation,
        )
        return {
            "rewards": torch.tensor(float(reward)),
            "scores": torch.tensor(success),
            "environment_feedback": "" if done else self._text(self.prompt_ids),
            "done": done,
            "extra_logs": {"gem/success": torch.tensor(success), "gem/turns": torch.tensor(float(self.turns))},
        }

    def _text(self, ids: list[int]) -> str:
        return self.renderer.tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)


@lru_cache(maxsize=4)
def _renderer_of(model: str, tool_role: bool, template_kwargs: str) -> ChatRenderer:
    from transformers import AutoTokenizer

    return ChatRenderer(AutoTokenizer.from_pretrained(model), None, tool_role, json.loads(template_kwargs))


def row(task: Task, gamma: float | None = None, max_turns: int | None = None) -> dict[str, str]:
    """Return a row of OpenRLHF's prompt data set.

    Args:
        task: what is run.
        gamma: discount per turn; None for the executor's.
        max_turns: turns per episode; None for the executor's.

    Returns:
        ``prompt`` (a name for the task), ``label`` (the task and the options, as JSON) and ``datasource``.

    Raises:
        ValueError: ``gamma`` or ``max_turns`` is out of range.
    """
    Limits(max_turns)
    options = {name: value for name, value in (("gamma", gamma), ("max_turns", max_turns)) if value is not None}
    check_gamma(options.get("gamma", 1.0))
    label = {**json.loads(task.to_json()), **options}
    kwargs = f" {json.dumps(task.env_kwargs, sort_keys=True)}" if task.env_kwargs else ""
    return {
        "prompt": f"gem:{task.split}:{task.env_id}#{task.seed}{kwargs}",
        "label": json.dumps(label, sort_keys=True),
        "datasource": task.env_id,
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Write rows, or print where this file is."""
    parser = argparse.ArgumentParser(
        prog="python -m gem_openrlhf", description="Write rows for OpenRLHF's prompt data set."
    )
    parser.add_argument("--path", action="store_true", help="print the path of this file, for --train.agent_func_path")
    parser.add_argument(
        "--env", action="append", default=[], help="a registered environment; several are mixed. `gem envs` lists them"
    )
    parser.add_argument("--seeds", help="of the tasks of each --env, as first:end")
    parser.add_argument("--env-kwargs", type=json.loads, default={}, help="arguments of each --env, as JSON")
    parser.add_argument(
        "--tasks", action="append", default=[], help="tasks as gem.tasks.load_tasks reads them: an expression or a file"
    )
    parser.add_argument("--out", type=Path, help="the .jsonl file to write")
    parser.add_argument("--split", default="train", help="train, eval or test; splits share no episode")
    parser.add_argument("--gamma", type=float, help="discount per turn")
    parser.add_argument("--max-turns", type=int, help="turns per episode")
    parser.add_argument("--model", help="--actor.model_name_or_path of the job: has the first prompts measured")
    parser.add_argument("--max-len", type=int, help="--data.max_len of the job, into which they must fit")
    args = parser.parse_args(arguments)
    if args.path:
        print(Path(__file__).resolve())
        return
    if not args.out or not (args.env or args.tasks) or bool(args.env) != bool(args.seeds):
        parser.error("--out is needed, and --env with --seeds, or --tasks (or --path)")
    try:
        of_envs = [f"env={env_id},seeds={args.seeds},split={args.split}" for env_id in args.env]
        tasks = (
            [replace(task, env_kwargs=args.env_kwargs) for task in load_tasks(of_envs, args.split)] if of_envs else []
        )
        tasks += load_tasks(args.tasks, args.split) if args.tasks else []
        rows = [json.dumps(row(task, args.gamma, args.max_turns)) for task in tasks]
        _check(tasks, args.model, args.max_len)
    except (ValueError, TypeError, ImportError, OSError, SandboxUnavailable) as error:
        parser.error(str(error))
    args.out.write_text("\n".join(rows) + "\n", encoding="utf-8")
    print(f"{len(rows)} tasks of {', '.join(sorted({task.env_id for task in tasks}))} in {args.out}")


def _check(tasks: Sequence[Task], model: str | None, max_len: int | None) -> None:
    """Refuse tasks that cannot be built, or whose first prompts do not fit into an episode.

    Raises:
        ContextTooSmall, ValueError, TypeError, ImportError: see :func:`gem.rollout.check_tasks`.
    """
    if model is not None:
        check_tasks(tasks, _renderer_of(model, False, "null"), Limits(max_context=max_len))
        return
    for task in {(task.env_id, json.dumps(task.env_kwargs, sort_keys=True)): task for task in tasks}.values():
        task.make().close()


if __name__ == "__main__":
    main()
