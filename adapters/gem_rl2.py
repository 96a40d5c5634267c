r"""GEM for RL2: an environment module for both of its interfaces, and ReBN.

.. code-block:: bash

    python -m gem_rl2 env=game:GuessTheNumber-v1-easy,seeds=0:1024 train.jsonl
    torchrun --nproc_per_node=1 -m RL2.trainer.ppo rollout.env_path="$(python -m gem_rl2 --path)" \
        train_data.path=train.jsonl train_data.prompts_per_rollout=8 train_data.responses_per_prompt=8 \
        rollout.max_turns=8 adv.estimator=rebn +rollout.gem.max_context=4096 ...

Options are keys under ``rollout.gem`` (at RL2's head, under ``rollout.train.gem`` and ``rollout.test.gem``); see
:class:`Options`. For wrappers, name a file of your own as ``env_path``:

.. code-block:: python

    from gem_rl2 import GemEnv

    env = GemEnv(make_env=my_env_with_wrappers)
    reset, step, generate = env.reset, env.step, env.generate

How GEM maps to RL2:

* A row is a task (:func:`row`). ``responses_per_prompt`` episodes of a row begin from one seed.
* **rl-square 0.0.2** calls ``reset`` and ``step``, which return text, and puts that text into tokens. The module
  replaces this one step: RL2 gets the runner's own ids. It also reads RL2's requests to the engine and their answers,
  since text does not show which tokens were sampled, or whether a turn was cut.
* **RL2's head** calls ``generate`` for whole episodes, and takes ids.
* A turn that extends its prompt extends RL2's sequence; a history that a wrapper rewrites begins a new sequence of the
  same trajectory. A turn's reward is on its last sampled token.
* ``adv.estimator=rebn`` is ReBN: a return for each turn, normalised over all turns of the batch; ``adv.gamma`` is its
  discount. RL2's other estimators compute what they did, over the valid episodes.
* With ``on_error=mask``, an invalid episode's sequences become rows of padding (:func:`leave_out`): no token of theirs
  is learned from, counted, or part of a baseline.
* ``scores`` is success; metrics are ``gem/...``, see :meth:`gem.rollout.Episode.metrics`.

Written for rl-square 0.0.2; the other interface for the repository's head as it was in 2026.
"""

from __future__ import annotations

import argparse
import atexit
import itertools
import json
import multiprocessing
import sys
from collections.abc import Callable, Iterator, Sequence
from contextvars import ContextVar
from functools import lru_cache, wraps
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

from gem.core import Env
from gem.rollout import (
    ChatRenderer,
    Episode,
    Limits,
    OnError,
    Request,
    Response,
    SteppedEpisode,
    append_episode,
    begin_run,
    check_gamma,
    check_on_error,
    check_tasks,
    group_advantages,
    mean_metrics,
    rebn,
    shared_runner,
)
from gem.rollout.tokens import bridge_between
from gem.tasks import Task, check_split, load_tasks


class Options(NamedTuple):
    """The keys under ``rollout.gem``.

    Attributes:
        max_context: tokens of an episode. By default ``rollout.server_args.context_length`` or the longest sequence
            that RL2 trains on (``actor.max_length_per_device``), whichever is less.
        max_turns: turns per episode. For rl-square 0.0.2 it is ``rollout.max_turns``, and this must not be given.
        step_timeout: seconds that a step of a blocking environment may take.
        system: a system message.
        tool_role: whether a tool's observation is a message of the tool role; see :class:`gem.rollout.ChatRenderer`.
        template_kwargs: arguments of the chat template, for example ``{enable_thinking: false}``.
        allow_control_tokens: whether control tokens that an observation spells out become control tokens.
        on_error: ``"mask"`` leaves out of training the episodes that failed for reasons that are not the model's;
            ``"keep"`` learns from what there is of them.
        episodes: a folder for all episodes as JSON lines; :func:`gem.rollout.read_episodes` reads them.
    """

    max_context: int | None = None
    max_turns: int | None = None
    step_timeout: float | None = 60.0
    system: str | None = None
    tool_role: bool = False
    template_kwargs: dict[str, Any] | None = None
    allow_control_tokens: bool = False
    on_error: OnError = "mask"
    episodes: str | None = None


class _Job:
    """What holds for a whole training with rl-square 0.0.2; made before its first rollout.

    Args:
        rollout: RL2's ``Rollout``.

    Raises:
        ValueError: a key of the configuration makes no sense, or the rows are no tasks, or of the wrong split.
    """

    def __init__(self, rollout: Any) -> None:
        config = rollout.config
        options = _options(config)
        if options.max_turns is not None:
            raise ValueError("rl-square 0.0.2 has rollout.max_turns: set that, and not rollout.gem.max_turns")
        self.options = options = options._replace(max_turns=config.max_turns, max_context=_context(config, options))
        self.renderer = _renderer(rollout.tokenizer, options)
        sampling = {True: rollout.train_sampling_params, False: rollout.test_sampling_params}
        self.limits = {train: _limits(options, params) for train, params in sampling.items()}
        check_gamma(float(_key(config, "adv.gamma", 1.0)))
        workers = ("actor", "critic") if _key(config, "adv.estimator") == "gae" else ("actor",)
        self.updates = [int(_key(config, f"{worker}.update_per_rollout", 1)) for worker in workers]
        self.tasks = {train: _tasks(config, train) for train in (True, False)}
        if options.episodes is not None:
            begin_run(options.episodes, resume=_key(config, "trainer.load_ckpt_from") is not None)
        self._checked = False

    def stepped(self, task: Task, train: bool, make_env: Callable[[Task], Env]) -> SteppedEpisode:
        """Return an episode of a task. Before the first of them, all tasks are tried out.

        Raises:
            ContextTooSmall, ValueError, TypeError, ImportError: see :func:`gem.rollout.check_tasks`.
        """
        if not self._checked:
            self._checked = True
            for of_train, tasks in self.tasks.items():
                if tasks:
                    check_tasks(tasks, self.renderer, self.limits[of_train], make_env)
        return SteppedEpisode(shared_runner(self.renderer, self.limits[train], make_env), task)


class _Batch:
    """The rollouts of one call of RL2's."""

    def __init__(self, job: _Job, train: bool, step: int | None) -> None:
        self.job, self.train, self.step = job, train, step
        self.episodes: list[Episode] = []


class _Trajectory:
    """What is known of a trajectory of rl-square 0.0.2 while it is made."""

    def __init__(self, job: _Job, train: bool) -> None:
        self.job, self.train = job, train
        self.stepped: SteppedEpisode | None = None
        self.response: Response | None = None
        self.next_ids: list[int] | None = None
        """Those of the text that ``reset`` or ``step`` has returned last."""
        self.has_filler = False
        """Whether RL2 was given a token where the engine had sampled none; it is the trajectory's last."""


_batch: ContextVar[_Batch | None] = ContextVar("gem_rl2_batch", default=None)
_trajectory: ContextVar[_Trajectory | None] = ContextVar("gem_rl2_trajectory", default=None)
"""That of the running coroutine: RL2 makes each trajectory in a coroutine of its own."""


class GemEnv:
    """What ``env_path`` names: the functions of both interfaces.

    Args:
        make_env: builds a task's environment; wrappers go in here.

    Raises:
        ImportError: there is no RL2, or one with neither interface, or a release that was never tested.
    """

    def __init__(self, make_env: Callable[[Task], Env] = Task.make) -> None:
        self.make_env = make_env
        self.running: dict[int, SteppedEpisode] = {}
        """Episodes that :meth:`generate` has begun and not ended, by the number that their sample has."""
        self._numbers = itertools.count()
        _attach()

    async def reset(self, extra_info: dict[str, Any]) -> tuple[str, dict[str, Any]]:
        """Begin the task of a row (rl-square 0.0.2).

        Raises:
            ContextTooSmall, ValueError, TypeError, ImportError: see :func:`gem.rollout.check_tasks`; or the row is no
                task.
        """
        trajectory = _current()
        stepped = trajectory.job.stepped(_task(extra_info), trajectory.train, self.make_env)
        trajectory.stepped = stepped
        trajectory.next_ids = list((await stepped.start()).prompt_ids)
        return _text(trajectory.job.renderer.tokenizer, trajectory.next_ids), extra_info

    async def step(self, state: str, action: str, extra_info: dict[str, Any]) -> dict[str, Any]:
        """Run a turn (rl-square 0.0.2) with what the engine has just sampled, of which ``action`` is the text."""
        trajectory = _current()
        stepped, response = trajectory.stepped, trajectory.response
        if stepped is None or stepped.request is None or response is None:
            raise RuntimeError("step was called without a reset, or without a request to the engine, before it")
        following = await stepped.answer(response)
        trajectory.response = None
        answer = {**_reward_and_end(stepped.episode, response, following), "extra_info": extra_info}
        if following is not None:
            bridge = _bridge(stepped.episode, following)
            trajectory.next_ids = list(following.prompt_ids) if bridge is None else bridge
            text = _text(trajectory.job.renderer.tokenizer, trajectory.next_ids)
            answer["next_state"] = _next_state(state + action, text, extends=bridge is not None)
        return answer

    async def generate(self, config: Any, tokenizer: Any, router_url: str, sample: Any) -> None:
        """Run the episode of a sample, or go on with it where it was aborted (RL2's head).

        Args:
            config: ``rollout.train`` or ``rollout.test``.
            tokenizer: the model's.
            router_url: of sglang's router.
            sample: RL2's; its row is a task.
        """
        from RL2.datasets import Sample, add_env_response, add_llm_response, initialize_state_dict
        from RL2.utils.communication import async_request

        if sample.status is Sample.Status.DONE:
            return
        options = _options(config)
        renderer = _renderer(tokenizer, options)
        params = _stopping(dict(config.sampling_params), renderer)
        if sample.status is Sample.Status.RUNNING:
            runner = shared_runner(renderer, _limits(options, params), self.make_env)
            stepped = SteppedEpisode(runner, _task(sample.sample))
            sample.gem_episode = next(self._numbers)  # RL2 writes samples as JSON: a number is all that they can hold
            self.running[sample.gem_episode] = stepped
        try:
            stepped = self.running[sample.gem_episode]
            if sample.status is Sample.Status.RUNNING:
                prompt_ids = list((await stepped.start()).prompt_ids)
                sample.state_text = _text(tokenizer, prompt_ids)
                sample.state_dict = initialize_state_dict(tokenizer, sample.state_text)
                _put(sample.state_dict, 0, prompt_ids)
            sample.status = Sample.Status.RUNNING
            while (request := stepped.request) is not None:
                own = sample.state_dict
                first = len(own["states"]) - sample.previous_response_length  # where the turn began, before an abort
                left = request.max_new_tokens - sample.previous_response_length
                payload = {
                    "input_ids": own["states"],
                    "sampling_params": {**params, "max_new_tokens": left, "no_stop_trim": True},
                    "return_logprob": True,
                }
                answer = await async_request(router_url, "generate", json=payload)
                response = _response(answer, renderer)
                if response.token_ids or response.finish_reason == "abort":
                    add_llm_response(sample, answer)
                    if sample.status is Sample.Status.ABORTED:
                        return
                    ids, logprobs = own["states"][first:], own["logps"][first:]
                    response = Response(ids, logprobs, response.finish_reason)
                following = await stepped.answer(response)
                made = _reward_and_end(stepped.episode, response, following)
                if following is not None:
                    bridge = _bridge(stepped.episode, following)
                    text = _text(tokenizer, following.prompt_ids if bridge is None else bridge)
                    before = sample.state_text + sample.action_text
                    made["next_state"] = _next_state(before, text, extends=bridge is not None)
                del made["score"]
                add_env_response(tokenizer, sample, made)
                if following is not None:
                    start = 0 if bridge is None else first + len(response.token_ids)
                    _put(sample.state_dict, start, following.prompt_ids)
            if options.on_error == "mask" and not stepped.episode.valid:
                for state_dict in sample.state_dicts:
                    for name in ("action_mask", "rewards"):
                        state_dict[name] = [0] * len(state_dict["states"])
            _keep(options, stepped.episode)
        finally:
            if sample.status is not Sample.Status.ABORTED:
                await self.running.pop(sample.gem_episode).close()


def row(task: Task) -> dict[str, Any]:
    """Return a row of RL2's data set, for either interface."""
    return {"extra_info": {"task": task.to_json()}}


def _task(row: dict[str, Any]) -> Task:
    """Return the task of a row, or of its ``extra_info``.

    Raises:
        ValueError: there is none; or RL2 would begin with the row's own prompt, and not with the environment.
    """
    text = (row.get("extra_info", row) or {}).get("task")
    if text is None or row.keys() & {"prompt", "messages"}:
        raise ValueError(
            f"the row {str(row)[:200]} is not a task: write rows with `python -m gem_rl2`, and name them as "
            "train_data.path and test_data.path"
        )
    return Task.from_json(text)


def _tasks(config: Any, train: bool) -> list[Task]:
    """Return the tasks of ``train_data.path`` or ``test_data.path``; none if RL2 is to do without one.

    Raises:
        ValueError: a row is no task, or is of the wrong split.
    """
    name = "train_data.path" if train else "test_data.path"
    path = _key(config, name)
    if path is None:
        return []
    from RL2.datasets.base import load_dataset

    tasks = [_task(row) for row in load_dataset(path)]
    try:
        check_split(tasks, "train" if train else "eval")
    except ValueError as error:
        raise ValueError(f"{name}: {error}; `python -m gem_rl2 env=...,seeds=...,split=eval` writes others") from None
    return tasks


def _key(config: Any, name: str, default: Any = None) -> Any:
    """Return a key of RL2's whole configuration, given ``rollout`` of it."""
    from omegaconf import OmegaConf

    return OmegaConf.select(config, f"..{name}", default=default)


def _options(config: Any) -> Options:
    """Return the keys under ``gem``.

    Raises:
        ValueError: there is no such option, or no such value of it.
    """
    from omegaconf import OmegaConf

    given = OmegaConf.to_container(config.gem) if config.get("gem") else {}
    unknown = sorted(given.keys() - set(Options._fields))
    if unknown:
        raise ValueError(f"rollout.gem has no {', '.join(unknown)}; it has {', '.join(Options._fields)}")
    options = Options(**given)
    check_on_error(options.on_error)
    return options


def _context(config: Any, options: Options) -> int | None:
    """Return the tokens of an episode: what is asked for, or else what the engine and RL2's workers hold.

    Raises:
        ValueError: more is asked for than RL2's workers hold. RL2 would end the run with the first such episode.
    """
    held: dict[str, int] = {}
    for worker in ("actor", "critic") if _key(config, "adv.estimator") == "gae" else ("actor",):
        devices = _key(config, f"{worker}.sp_size", 1) * _key(config, f"{worker}.tp_size", 1)
        for name in ("max_length_per_device", "max_inference_length_per_device"):
            length = _key(config, f"{worker}.{name}")
            if length is not None:
                held[f"{worker}.{name}"] = length * devices
    for name, length in held.items():
        if options.max_context is not None and options.max_context > length:
            raise ValueError(
                f"rollout.gem.max_context is {options.max_context}, but {name} allows sequences of {length} tokens"
            )
    server = config.server_args.get("context_length")
    lengths = [length for length in (server, *held.values()) if length is not None]
    return options.max_context or min(lengths, default=None)


def _limits(options: Options, params: dict[str, Any]) -> Limits:
    """Return the limits of episodes.

    Raises:
        ValueError: one makes no sense, or the tokens of a turn have none.
    """
    if params.get("max_new_tokens") is None:
        raise ValueError("RL2 needs the tokens of a turn: set max_new_tokens of its sampling parameters")
    return Limits(options.max_turns, params["max_new_tokens"], options.max_context, None, options.step_timeout)


def _renderer(tokenizer: Any, options: Options) -> ChatRenderer:
    given = json.dumps(options.template_kwargs, sort_keys=True)
    return _shared_renderer(tokenizer, options.system, options.tool_role, given, options.allow_control_tokens)


@lru_cache(maxsize=8)
def _shared_renderer(
    tokenizer: Any, system: str | None, tool_role: bool, template_kwargs: str, allow_control_tokens: bool
) -> ChatRenderer:
    return ChatRenderer(tokenizer, system, tool_role, json.loads(template_kwargs), allow_control_tokens)


def _text(tokenizer: Any, ids: Sequence[int]) -> str:
    return tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False)


def _stopping(params: dict[str, Any], renderer: ChatRenderer) -> dict[str, Any]:
    """Return sampling parameters with which sglang also stops where the chat template ends an answer."""
    own = params.get("stop_token_ids") or ()
    return {**params, "stop_token_ids": sorted({*own, *renderer.stop_ids})}


def _response(answer: dict[str, Any], renderer: ChatRenderer) -> Response:
    """Return what sglang sampled.

    Raises:
        RuntimeError: it has refused the request.
    """
    meta = answer.get("meta_info")
    if meta is None:
        raise RuntimeError(f"sglang sampled no token, but answered {answer}")
    sampled = meta.get("output_token_logprobs") or []
    ids, logprobs = [token for _, token, _ in sampled], [logprob for logprob, _, _ in sampled]
    reason = meta["finish_reason"]["type"]
    if not ids or reason not in ("stop", "length"):
        return Response(ids, logprobs, "abort")
    return Response(ids, logprobs, "stop" if ids[-1] in renderer.stop_ids else reason)


def _bridge(episode: Episode, following: Request) -> list[int] | None:
    """Return the ids between the last answer and the next request; None if the history was rewritten."""
    turn = episode.turns[-1]
    return bridge_between(turn.prompt_ids, turn.response_ids, following.prompt_ids)


def _next_state(before: str, text: str, extends: bool) -> str:
    """Return the text by which RL2 finds out whether its sequence goes on: whether it starts with the text before."""
    if extends:
        return before + text
    return f" {text}" if text.startswith(before) else text


def _reward_and_end(episode: Episode, response: Response, following: Request | None) -> dict[str, Any]:
    """Return what both interfaces want to know of the last turn."""
    done = following is None
    return {
        "next_state": "",
        "reward": episode.turns[-1].reward if response.token_ids else 0.0,
        "score": float(done and episode.success),
        "done": done,
    }


def _put(state_dict: dict[str, list[Any]], start: int, ids: Sequence[int]) -> None:
    """Let RL2's sequence be these ids, of which those from ``start`` on were not sampled."""
    for name, values in state_dict.items():
        values[start:] = list(ids[start:]) if name == "states" else [0] * (len(ids) - start)


def _keep(options: Options, episode: Episode, step: int | None = None) -> None:
    if options.episodes is not None:
        append_episode(options.episodes, episode, step)


# How the module is attached to RL2

TESTED = "0.0.2"
"""The release of rl-square that the tests run with."""


def _attach() -> None:
    """Put the module between rl-square 0.0.2 and its engine, and give RL2 one more advantage estimator; once a process.

    Raises:
        ImportError: there is no RL2, or one with neither interface, or a release that was never tested.
    """
    try:
        import RL2.datasets
        from RL2.workers import rollout
    except ImportError as error:
        raise ImportError(f"gem_rl2 needs RL2 and what it needs ({error}): pip install 'gem-adapters[rl2]'") from error

    _check_version()
    if hasattr(rollout, "async_generate"):
        from RL2.utils import algorithms

        _wrap(rollout, "async_generate", _observed)
        _wrap(rollout, "initialize_state_dict", _with_ids)
        _wrap(rollout, "gather_and_log", _logged)
        _wrap(rollout.Rollout, "rollout", _recorded)
        _wrap(rollout.Rollout, "__call__", _batched)
        _wrap(algorithms, "compute_reinforce_adv", _over_valid_episodes)
        _wrap(algorithms, "compute_gae", _over_valid_tokens)
        atexit.register(_end_servers)
    elif not hasattr(RL2.datasets, "add_llm_response"):
        raise ImportError(
            "this RL2 has neither the interface of rl-square 0.0.2 nor that of the repository's head: "
            "pip install rl-square==0.0.2"
        )
    for name in ("RL2.trainer.ppo", "__main__"):  # `python -m RL2.trainer.ppo` is the latter
        if hasattr(sys.modules.get(name), "compute_advantages"):
            _wrap(sys.modules[name], "compute_advantages", _with_rebn)


def _check_version() -> None:
    try:
        installed = version("rl-square")
    except PackageNotFoundError:
        return  # a checkout of the repository, which is known by its interface
    if installed != TESTED:
        raise ImportError(
            f"gem_rl2 works with rl-square {TESTED}, and rl-square {installed} is installed: "
            f"pip install rl-square=={TESTED}"
        )


def _wrap(owner: Any, name: str, wrapper: Callable[[Callable[..., Any]], Callable[..., Any]]) -> None:
    function = getattr(owner, name)
    if not hasattr(function, "of_gem"):
        wrapped = wraps(function)(wrapper(function))
        wrapped.of_gem = True  # type: ignore[attr-defined]
        setattr(owner, name, wrapped)


def _end_servers() -> None:
    """End RL2's servers with the trainer's process: RL2 leaves them running, and Python would wait for them."""
    for process in multiprocessing.active_children():
        process.kill()


def _current() -> _Trajectory:
    trajectory = _trajectory.get()
    if trajectory is None:
        raise RuntimeError("reset and step are for RL2's rollout, which calls them for one trajectory after another")
    return trajectory


def _job(rollout: Any) -> _Job:
    if not hasattr(rollout, "gem_job"):
        rollout.gem_job = _Job(rollout)
    return rollout.gem_job


def _batched(original: Callable[..., Any]) -> Callable[..., Any]:
    """Return ``Rollout.__call__`` of 0.0.2, for batches of which some episodes were left out."""
    import torch.distributed as dist
    import wandb

    def of_batch(self: Any, data_list: Any, train: bool, step: int) -> Any:
        if dist.get_rank() != 0:
            return original(self, data_list, train, step)
        for data in data_list:
            _task(data)
        batch = _Batch(_job(self), train, step)
        token = _batch.set(batch)
        # RL2's own filter counts a failure as an episode of no reward, and ends the run if it leaves no group.
        filtering, self.config.dynamic_filtering = self.config.dynamic_filtering, False
        try:
            packed = original(self, data_list, train, step)
        finally:
            self.config.dynamic_filtering = filtering
            _batch.reset(token)
        if not train:
            return packed
        tensor_dict, cu_seqs = packed
        if filtering and self.config.responses_per_prompt > 1:
            tensor_dict, cu_seqs, ratio = _filtered(tensor_dict, cu_seqs, self.config.responses_per_prompt)
            wandb.log({"dynamic_filtering_ratio": ratio}, step=step)
        for updates in batch.job.updates:
            _fill_updates(tensor_dict, updates)
        return tensor_dict, cu_seqs

    return of_batch


def _recorded(original: Callable[..., Any]) -> Callable[..., Any]:
    """Return ``Rollout.rollout`` of 0.0.2, of which each trajectory is an episode."""

    async def rollout(self: Any, data: Any, train: bool) -> Any:
        batch = _batch.get() or _Batch(_job(self), train, None)
        trajectory = _Trajectory(batch.job, train)
        token = _trajectory.set(trajectory)
        try:
            tensor_dicts, metric = await original(self, data, train)
            assert trajectory.stepped is not None, "rows without an environment are refused"
            episode, options = trajectory.stepped.episode, batch.job.options
            batch.episodes.append(episode)
            _keep(options, episode, batch.step)
            if trajectory.has_filler:
                _take_back_filler(tensor_dicts[-1])
            if options.on_error == "mask" and not episode.valid:
                metric = {name: [] for name in metric}  # the keys are needed: RL2 takes those of the first trajectory
                for tensor_dict in tensor_dicts:
                    leave_out(tensor_dict)
            return tensor_dicts, metric
        finally:
            _trajectory.reset(token)
            if trajectory.stepped is not None:
                await trajectory.stepped.close()

    return rollout


def _logged(original: Callable[..., Any]) -> Callable[..., Any]:
    """Return 0.0.2's ``gather_and_log``, with the metrics of the episodes."""

    def gather_and_log(metrics: dict[str, list[float]], step: int) -> None:
        batch = _batch.get()
        if batch is not None:
            suffix = "train" if batch.train else "test"
            means = {f"gem/{name}/{suffix}": [value] for name, value in mean_metrics(batch.episodes).items()}
            metrics = {name: values for name, values in metrics.items() if values} | means
        original(metrics, step)

    return gather_and_log


def _with_ids(original: Callable[..., Any]) -> Callable[..., Any]:
    """Return 0.0.2's ``initialize_state_dict``, which puts a text into tokens, for texts of which the ids are known.

    Put into tokens again, a text can become other ids than those that it was made from. In particular a control token
    that an environment has spelled out, and that the renderer has kept ordinary tokens, would become a control token.
    """

    def initialize_state_dict(tokenizer: Any, text: str) -> Any:
        trajectory = _trajectory.get()
        if trajectory is None or trajectory.next_ids is None:
            return original(tokenizer, text)
        ids, trajectory.next_ids = trajectory.next_ids, None
        return original(SimpleNamespace(encode=lambda *_, **__: ids), text)

    return initialize_state_dict


def _observed(original: Callable[..., Any]) -> Callable[..., Any]:
    """Return 0.0.2's request to the engine, of which the module takes note."""

    async def async_generate(url: str, states: list[int], sampling_params: dict[str, Any]) -> Any:
        trajectory = _trajectory.get()
        if trajectory is None or trajectory.stepped is None or trajectory.stepped.request is None:
            return await original(url, states, sampling_params)
        request, renderer = trajectory.stepped.request, trajectory.job.renderer
        if states != list(request.prompt_ids):
            raise RuntimeError("RL2 asks the engine for another prompt than that of the episode")
        params = {**_stopping(sampling_params, renderer), "max_new_tokens": request.max_new_tokens}
        answer = await original(url, states, params)
        trajectory.response = _response(answer, renderer)
        if not trajectory.response.token_ids:
            trajectory.has_filler = True  # RL2 fails without a token
            answer["meta_info"]["output_token_logprobs"] = [[0.0, states[-1], None]]
        return answer

    return async_generate


# What RL2 computes of a batch


def leave_out(tensor_dict: dict[str, Any]) -> None:
    """Make a sequence one of padding: no token is learned from, it has no end, and so RL2 takes it as one token long.

    Args:
        tensor_dict: a sequence as RL2 has it, (T,) each, or several, (N, T) each; changed in place.
    """
    for name in ("action_mask", "eos_mask", "rewards"):
        tensor_dict[name].zero_()


def _valid(tensor_dict: dict[str, Any]) -> Any:
    """Return which sequences were not left out, (N,)."""
    return tensor_dict["eos_mask"].any(-1)


def _take_back_filler(tensor_dict: dict[str, Any]) -> None:
    """End a sequence on the last sampled token, if there is one, before that which stood in for an empty answer."""
    for name in ("action_mask", "eos_mask", "rewards"):
        tensor_dict[name][-1] = 0
    sampled = tensor_dict["action_mask"].nonzero()
    if len(sampled):
        tensor_dict["eos_mask"][sampled[-1]] = 1


def _filtered(tensor_dict: dict[str, Any], cu_seqs: Any, size: int) -> tuple[dict[str, Any], Any, float]:
    """Do what RL2's ``dynamic_filtering`` does, over the valid episodes: drop groups in which all got the same.

    Where no group is left, all of them stay, and are left out of what is learned.

    Returns:
        The batch, its ``cu_seqs``, and the share of groups that were dropped.
    """
    import torch

    bounds, valid = cu_seqs.tolist(), _valid(tensor_dict)
    dropped = [
        _nothing_to_compare(
            torch.stack(
                [
                    tensor_dict["rewards"][first:end].sum()
                    for first, end in itertools.pairwise(group)
                    if valid[first:end].any()
                ]
                or [torch.zeros(())]
            )
        )
        for group in (bounds[i : i + size + 1] for i in range(0, len(bounds) - 1, size))
    ]
    if all(dropped):
        leave_out(tensor_dict)
        return tensor_dict, cu_seqs, 1.0
    lengths = cu_seqs.diff().view(-1, size)
    kept = ~torch.tensor(dropped)
    rows = kept.repeat_interleave(lengths.sum(-1))
    cu_seqs = torch.cat([cu_seqs[:1], lengths[kept].flatten().cumsum(0)])
    return {name: values[rows] for name, values in tensor_dict.items()}, cu_seqs, sum(dropped) / len(dropped)


def _fill_updates(tensor_dict: dict[str, Any], updates: int) -> None:
    """Give every update a token. RL2 divides the loss of an update by its sampled tokens, and nothing by 0 is NaN.

    Where all episodes of an update were left out, it gets one token of theirs, of which the advantage is 0.
    """
    for mask in tensor_dict["action_mask"].chunk(updates):
        if not mask.any():
            mask[0, 0] = 1


def _nothing_to_compare(values: Any) -> bool:
    """Whether values are equal but for rounding, of which a deviation must not make advantages."""
    return len(values) < 2 or not group_advantages(values.double().numpy(), len(values), scale=False).any()


def _over_valid_episodes(original: Callable[..., Any]) -> Callable[..., Any]:
    """Return RL2's ``compute_reinforce_adv`` for groups, or batches, of which some episodes were left out."""
    import torch

    def compute_reinforce_adv(
        tensor_dict: dict[str, Any], responses_per_prompt: int, global_norm: bool, norm_var: bool
    ) -> dict[str, Any]:
        valid = _valid(tensor_dict)
        advantages = torch.zeros_like(tensor_dict["rewards"])
        every = torch.arange(len(valid))
        for group in [every] if global_norm else every.split(responses_per_prompt):
            members = group[valid[group]]
            own = {name: tensor_dict[name][members] for name in ("rewards", "action_mask")}
            if not _nothing_to_compare(own["rewards"].sum(-1)):
                advantages[members] = original(own, len(members), global_norm, norm_var)["advantages"]
        return {"advantages": advantages}

    return compute_reinforce_adv


def _over_valid_tokens(original: Callable[..., Any]) -> Callable[..., Any]:
    """Return RL2's ``compute_gae``, which also normalises, for batches of which some episodes were left out."""
    import torch

    def compute_gae(tensor_dict: dict[str, Any], gamma: float, lamda: float) -> dict[str, Any]:
        valid = _valid(tensor_dict)[:, None]
        values, mask = tensor_dict["values"], tensor_dict["action_mask"] * valid
        computed = original({**tensor_dict, "action_mask": mask}, gamma, lamda)
        if _nothing_to_compare((computed["returns"] - values)[mask.bool()]):
            computed["advantages"] = torch.zeros_like(values)
        computed["returns"] = torch.where(valid, computed["returns"], values)
        return computed

    return compute_gae


def _with_rebn(original: Callable[..., Any]) -> Callable[..., Any]:
    """Return RL2's ``compute_advantages`` with one more estimator."""
    from RL2.utils.logging import time_logger

    @time_logger("compute_advantages")
    def of_turns(config: Any, tensor_dict: dict[str, Any], cu_seqs: Any, step: int) -> None:
        tensor_dict["advantages"] = rebn_advantages(tensor_dict, cu_seqs, check_gamma(config.gamma))

    def compute_advantages(config: Any, tensor_dict: dict[str, Any], cu_seqs: Any, step: int) -> None:
        (of_turns if config.estimator == "rebn" else original)(config, tensor_dict, cu_seqs, step)

    return compute_advantages


def rebn_advantages(tensor_dict: dict[str, Any], cu_seqs: Any, gamma: float = 1.0) -> Any:
    """Return ReBN's advantages for what RL2 has packed; see :func:`gem.rollout.rebn`.

    Args:
        tensor_dict: ``action_mask``, ``eos_mask`` and ``rewards``, (N, T) each: N sequences, of which a trajectory has
            one or more. A turn is a run of sampled tokens.
        cu_seqs: (B + 1,): the sequences of trajectory i are those from ``cu_seqs[i]`` to ``cu_seqs[i + 1]``.
        gamma: discount per turn.

    Returns:
        (N, T), float32: each sampled token has the advantage of its turn; 0 in sequences that were left out.
    """
    import torch

    rewards = tensor_dict["rewards"]
    mask = tensor_dict["action_mask"] * _valid(tensor_dict)[:, None]
    bounds = cu_seqs.tolist()
    turns = [
        [(row, *turn) for row in range(first, end) for turn in _runs(mask[row].tolist())]
        for first, end in itertools.pairwise(bounds)
    ]
    of_turns = rebn([[float(rewards[row, a:b].sum()) for row, a, b in trajectory] for trajectory in turns], gamma)
    advantages = torch.zeros(mask.shape)
    for trajectory, values in zip(turns, of_turns, strict=True):
        for (row, a, b), value in zip(trajectory, values, strict=True):
            advantages[row, a:b] = float(value)
    return advantages


def _runs(mask: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Yield first and end of every run of ones."""
    start = 0
    for one, group in itertools.groupby(mask):
        length = len(list(group))
        if one:
            yield start, start + length
        start += length


# Rows


def main(arguments: Sequence[str] | None = None) -> None:
    """Write rows, or print where this file is."""
    parser = argparse.ArgumentParser(
        prog="python -m gem_rl2",
        description="Write rows for RL2's data set.",
        usage="%(prog)s [-h] (--path | tasks [tasks ...] out)",
    )
    parser.add_argument("--path", action="store_true", help="print the path of this file, for rollout.env_path")
    parser.add_argument(
        "tasks",
        nargs="*",
        help="env=<id>,seeds=<first>:<end>[,split=eval][,<argument>=<value> ...], or a file of tasks; one or more, "
        "and at the end the .jsonl file to write",
    )
    args = parser.parse_args(arguments)
    if args.path:
        print(Path(__file__).resolve())
        return
    *sources, out = args.tasks or [""]
    if not sources:
        parser.error("tasks and out are needed (or --path)")
    try:
        tasks = load_tasks(sources, "eval" if any("split=" in source for source in sources) else "train")
        for task in {json.dumps([task.env_id, task.env_kwargs], sort_keys=True): task for task in tasks}.values():
            task.make().close()  # refuses an environment or arguments that do not exist
    except (ValueError, TypeError, ImportError, OSError) as error:
        parser.error(str(error))
    write_rows(tasks, out)
    print(f"{len(tasks)} tasks in {out}")


def write_rows(tasks: Sequence[Task], path: str | Path) -> None:
    """Write a file of rows for ``train_data.path`` or ``test_data.path``."""
    Path(path).write_text("".join(json.dumps(row(task)) + "\n" for task in tasks), encoding="utf-8")


@lru_cache(maxsize=1)
def _default() -> GemEnv:
    return GemEnv()


def __getattr__(name: str) -> Any:
    """Give the functions that RL2 wants. RL2 is not imported before: rows can be written without it."""
    if name in ("reset", "step", "generate"):
        return getattr(_default(), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


if __name__ == "__main__":
    main()
elif __name__ != "gem_rl2":  # RL2 runs this file under a name of its own; what it remembers is to be in one place
    from gem_rl2 import generate, reset, step  # noqa: F401
