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
* **rl-square 0.0.2** asks ``reset`` and ``step`` for text, and puts it into tokens. What the model samples stays as it
  was sampled; of the text between two turns RL2 makes the ids. The module also listens to RL2's requests to the engine,
  since text does not say whether a turn was cut, or how long the context is by now.
* **RL2's head** asks ``generate`` for whole episodes, and takes ids: nothing is put into tokens twice.
* A turn that extends its prompt extends RL2's sequence; a history that a wrapper rewrites begins a new sequence of the
  same trajectory. A turn's reward is on its last sampled token.
* ``adv.estimator=rebn`` is ReBN: a return for each turn, normalised over all turns of the batch; ``adv.gamma`` is its
  discount. RL2's other estimators are as they were.
* ``scores`` is success; metrics are ``gem/...``, see :meth:`gem.rollout.Episode.metrics`.
* An environment that fails ends its own episode.

Written for rl-square 0.0.2; the other interface for the repository's head as it was in 2026.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextvars import ContextVar
from functools import lru_cache, wraps
from pathlib import Path
from typing import Any, NamedTuple

from gem.core import Env
from gem.rollout import (
    ChatRenderer,
    Episode,
    Limits,
    Request,
    Response,
    SteppedEpisode,
    append_episode,
    rebn,
    shared_player,
)
from gem.tasks import Task, load_tasks


class Options(NamedTuple):
    """The keys under ``rollout.gem``.

    Attributes:
        max_context: tokens of an episode; at most ``actor.max_length_per_device``, which RL2 does not tell. By default
            ``rollout.server_args.context_length``, or no limit.
        max_turns: turns an episode. For rl-square 0.0.2 it is ``rollout.max_turns``, and this must not be given.
        step_timeout: seconds that a step of a blocking environment may take.
        system: a system message.
        tool_role: whether a tool's observation is a message of the tool role; see :class:`gem.rollout.ChatRenderer`.
        episodes: a folder for all episodes as JSON lines; :func:`gem.rollout.read_episodes` reads them.
    """

    max_context: int | None = None
    max_turns: int | None = None
    step_timeout: float | None = 60.0
    system: str | None = None
    tool_role: bool = False
    episodes: str | None = None


class _Trajectory:
    """What is known of a trajectory of rl-square 0.0.2 while it is made."""

    def __init__(self, rollout: Any, train: bool) -> None:
        self.tokenizer, self.config = rollout.tokenizer, rollout.config
        self.params = rollout.train_sampling_params if train else rollout.test_sampling_params
        self.options = Options()
        self.stepped: SteppedEpisode | None = None
        self.response: Response | None = None
        self.prompts: list[list[int]] = []
        """Ids that RL2 sent to the engine, turn by turn."""


_trajectory: ContextVar[_Trajectory | None] = ContextVar("gem_rl2_trajectory", default=None)
"""That of the running coroutine: RL2 makes each trajectory in a coroutine of its own."""


class GemEnv:
    """What ``env_path`` names: the functions of both interfaces.

    Args:
        make_env: builds a task's environment; wrappers go in here.

    Raises:
        ImportError: there is no RL2, or one with neither interface.
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
            ContextTooSmall, ValueError, TypeError, ImportError: see :func:`gem.rollout.run_episodes`; or the row is no
                task, or an option makes no sense.
        """
        trajectory = _current()
        config = trajectory.config
        options = trajectory.options = _options(config)
        if options.max_turns is not None:
            raise ValueError("rl-square 0.0.2 has rollout.max_turns: set that, and not rollout.gem.max_turns")
        context = options.max_context or config.server_args.get("context_length")
        options = options._replace(max_turns=config.max_turns, max_context=context)
        trajectory.stepped = self._stepped(_task(extra_info), trajectory.tokenizer, options, trajectory.params)
        request = await trajectory.stepped.start()
        return _text(trajectory.tokenizer, request.prompt_ids), extra_info

    async def step(self, state: str, action: str, extra_info: dict[str, Any]) -> dict[str, Any]:
        """Play a turn (rl-square 0.0.2) with what the engine has just sampled, of which ``action`` is the text."""
        trajectory = _current()
        stepped, response = trajectory.stepped, trajectory.response
        if stepped is None or stepped.request is None or response is None:
            raise RuntimeError("step was called without a reset, or without a request to the engine, before it")
        before, following = stepped.request, await stepped.answer(response)
        trajectory.response = None
        answer = {**_reward_and_end(stepped.episode, following), "extra_info": extra_info}
        if following is not None:
            bridge = _bridge(before, response, following)
            text = _text(trajectory.tokenizer, following.prompt_ids if bridge is None else bridge)
            answer["next_state"] = text if bridge is None else state + action + text
        return answer

    async def generate(self, config: Any, tokenizer: Any, router_url: str, sample: Any) -> None:
        """Play the task of a sample, or go on with it where it was aborted (RL2's head).

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
        params = dict(config.sampling_params)
        options = _options(config)
        if sample.status is Sample.Status.RUNNING:
            stepped = self._stepped(_task(sample.sample), tokenizer, options, params)
            sample.gem_episode = next(self._numbers)  # RL2 writes samples as JSON: a number is all that they can hold
            self.running[sample.gem_episode] = stepped
        try:
            stepped = self.running[sample.gem_episode]
            if sample.status is Sample.Status.RUNNING:
                prompt_ids = (await stepped.start()).prompt_ids
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
                add_llm_response(sample, answer)
                if sample.status is Sample.Status.ABORTED:
                    return
                ids, logprobs = own["states"][first:], own["logps"][first:]
                response = Response(ids, logprobs, answer["meta_info"]["finish_reason"]["type"])
                following = await stepped.answer(response)
                if stepped.episode.turns:
                    stepped.episode.turns[-1].prompt_ids = own["states"][:first]
                made = _reward_and_end(stepped.episode, following)
                if following is not None:
                    bridge = _bridge(request, response, following)
                    text = _text(tokenizer, following.prompt_ids if bridge is None else bridge)
                    made["next_state"] = text if bridge is None else sample.state_text + sample.action_text + text
                del made["score"]
                add_env_response(tokenizer, sample, made)
                if following is not None and bridge is not None:
                    _put(own, first + len(ids), following.prompt_ids)
                elif following is not None and sample.state_dict is not own:  # else RL2 has found that it is no new one
                    _put(sample.state_dict, 0, following.prompt_ids)
            _keep(options, stepped.episode)
        finally:
            if sample.status is not Sample.Status.ABORTED:
                await self.running.pop(sample.gem_episode).close()

    def _stepped(self, task: Task, tokenizer: Any, options: Options, params: dict[str, Any]) -> SteppedEpisode:
        if params.get("max_new_tokens") is None:
            raise ValueError("RL2 needs the tokens of a turn: set max_new_tokens of its sampling parameters")
        limits = Limits(options.max_turns, params["max_new_tokens"], options.max_context, None, options.step_timeout)
        renderer = _renderer(tokenizer, options.system, options.tool_role)
        return SteppedEpisode(shared_player(renderer, limits, self.make_env), task)


def row(task: Task) -> dict[str, Any]:
    """Return a row of RL2's data set, for either interface."""
    return {"extra_info": {"task": task.to_json()}}


def _task(row: dict[str, Any]) -> Task:
    """Return the task of a row, or of its ``extra_info``.

    Raises:
        ValueError: there is none.
    """
    text = row.get("extra_info", row).get("task")
    if text is None:
        raise ValueError(f"the row {row} has no task: write rows with `python -m gem_rl2`, and name them as path")
    return Task.from_json(text)


def _options(config: Any) -> Options:
    given = dict(config.get("gem") or {})
    unknown = sorted(given.keys() - set(Options._fields))
    if unknown:
        raise ValueError(f"rollout.gem has no {', '.join(unknown)}; it has {', '.join(Options._fields)}")
    return Options(**given)


@lru_cache(maxsize=8)
def _renderer(tokenizer: Any, system: str | None, tool_role: bool) -> ChatRenderer:
    return ChatRenderer(tokenizer, system, tool_role)


def _text(tokenizer: Any, ids: Sequence[int]) -> str:
    return tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)


def _bridge(before: Request, response: Response, following: Request) -> list[int] | None:
    """Return what stands between an answer and the next request; None if the history was rewritten."""
    said = [*before.prompt_ids, *response.token_ids]
    ids = list(following.prompt_ids)
    return ids[len(said) :] if ids[: len(said)] == said else None


def _reward_and_end(episode: Episode, following: Request | None) -> dict[str, Any]:
    """Return what both interfaces want to know of the last turn."""
    done = following is None
    return {
        "next_state": "",
        "reward": episode.turns[-1].reward if episode.turns else 0.0,
        "score": float(done and episode.success),
        "done": done,
    }


def _put(state_dict: dict[str, list[Any]], start: int, ids: Sequence[int]) -> None:
    """Let RL2's sequence be these ids, of which those from ``start`` on were not sampled."""
    for name, values in state_dict.items():
        values[start:] = list(ids[start:]) if name == "states" else [0] * (len(ids) - start)


def _keep(options: Options, episode: Episode) -> None:
    if options.episodes is not None:
        append_episode(options.episodes, episode)


# How the module is attached to RL2


def _attach() -> None:
    """Listen to rl-square 0.0.2, and give RL2 one more advantage estimator; once a process.

    Raises:
        ImportError: there is no RL2, or one with neither interface.
    """
    try:
        import RL2.datasets
        from RL2.workers import rollout
    except ImportError as error:
        raise ImportError(f"gem_rl2 needs RL2 and what it needs ({error}): pip install 'gem-adapters[rl2]'") from error

    if hasattr(rollout, "async_generate"):
        _wrap(rollout, "async_generate", _heard)
        _wrap(rollout.Rollout, "rollout", _followed)
    elif not hasattr(RL2.datasets, "add_llm_response"):
        raise ImportError(
            "this RL2 has neither the interface of rl-square 0.0.2 nor that of the repository's head: "
            "pip install rl-square==0.0.2"
        )
    for name in ("RL2.trainer.ppo", "__main__"):  # `python -m RL2.trainer.ppo` is the latter
        if hasattr(sys.modules.get(name), "compute_advantages"):
            _wrap(sys.modules[name], "compute_advantages", _with_rebn)


def _wrap(owner: Any, name: str, wrapper: Callable[[Callable[..., Any]], Callable[..., Any]]) -> None:
    function = getattr(owner, name)
    if not hasattr(function, "of_gem"):
        wrapped = wraps(function)(wrapper(function))
        wrapped.of_gem = True  # type: ignore[attr-defined]
        setattr(owner, name, wrapped)


def _current() -> _Trajectory:
    trajectory = _trajectory.get()
    if trajectory is None:
        raise RuntimeError("reset and step are for RL2's rollout, which calls them for one trajectory after another")
    return trajectory


def _followed(original: Callable[..., Any]) -> Callable[..., Any]:
    """Return ``Rollout.rollout`` of 0.0.2, for which the module keeps the books of each trajectory."""

    async def rollout(self: Any, data: Any, train: bool) -> Any:
        trajectory = _Trajectory(self, train)
        token = _trajectory.set(trajectory)
        try:
            tensor_dicts, metric = await original(self, data, train)
            for name, value in _finished(trajectory).items():
                metric[f"gem/{name}"].append(value)
            return tensor_dicts, metric
        finally:
            _trajectory.reset(token)
            if trajectory.stepped is not None:
                await trajectory.stepped.close()

    return rollout


def _finished(trajectory: _Trajectory) -> dict[str, float]:
    """Keep the episode with the ids that RL2 learns from, and return its metrics."""
    if trajectory.stepped is None:
        return {}
    episode = trajectory.stepped.episode
    others = 0
    for turn, prompt in zip(episode.turns, trajectory.prompts, strict=True):
        others += prompt != turn.prompt_ids
        turn.prompt_ids = prompt
    _keep(trajectory.options, episode)
    return {**episode.metrics(), "reencoded_prompts": float(others)}


def _heard(original: Callable[..., Any]) -> Callable[..., Any]:
    """Return 0.0.2's request to the engine, to which the module listens."""

    async def async_generate(url: str, states: list[int], sampling_params: dict[str, Any]) -> Any:
        trajectory = _trajectory.get()
        if trajectory is None or trajectory.stepped is None or trajectory.stepped.request is None:
            return await original(url, states, sampling_params)
        trajectory.prompts.append(list(states))
        params = {**sampling_params, "max_new_tokens": trajectory.stepped.request.max_new_tokens}
        answer = await original(url, states, params)
        meta = answer.get("meta_info", {})
        if not meta.get("output_token_logprobs"):
            raise RuntimeError(f"sglang sampled no token for a prompt of {len(states)}, but answered {answer}")
        logprobs, ids, _ = zip(*meta["output_token_logprobs"], strict=True)
        reason = meta["finish_reason"]["type"]
        trajectory.response = Response(list(ids), list(logprobs), reason if reason in ("stop", "length") else "abort")
        return answer

    return async_generate


def _with_rebn(original: Callable[..., Any]) -> Callable[..., Any]:
    """Return RL2's ``compute_advantages`` with one more estimator."""
    from RL2.utils.logging import time_logger

    @time_logger("compute_advantages")
    def of_turns(config: Any, tensor_dict: dict[str, Any], cu_seqs: Any, step: int) -> None:
        tensor_dict["advantages"] = rebn_advantages(tensor_dict, cu_seqs, config.gamma)

    def compute_advantages(config: Any, tensor_dict: dict[str, Any], cu_seqs: Any, step: int) -> None:
        (of_turns if config.estimator == "rebn" else original)(config, tensor_dict, cu_seqs, step)

    return compute_advantages


def rebn_advantages(tensor_dict: dict[str, Any], cu_seqs: Any, gamma: float = 1.0) -> Any:
    """Return ReBN's advantages for what RL2 has packed; see :func:`gem.rollout.rebn`.

    Args:
        tensor_dict: ``action_mask`` and ``rewards``, (N, T) each: N sequences, of which a trajectory has one or more.
            A turn is a run of sampled tokens.
        cu_seqs: (B + 1,): the sequences of trajectory i are those from ``cu_seqs[i]`` to ``cu_seqs[i + 1]``.
        gamma: discount a turn.

    Returns:
        (N, T), float32: each sampled token has the advantage of its turn.
    """
    import torch

    mask, rewards = tensor_dict["action_mask"], tensor_dict["rewards"]
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


def main(arguments: Sequence[str] | None = None) -> None:
    """Write rows, or say where this file is."""
    parser = argparse.ArgumentParser(prog="python -m gem_rl2", description="Write rows for RL2's data set.")
    parser.add_argument("--path", action="store_true", help="print the path of this file, for rollout.env_path")
    parser.add_argument("tasks", nargs="?", help="env=<id>,seeds=<first>:<end>[,split=eval][,<argument>=<value> ...]")
    parser.add_argument("out", nargs="?", type=Path, help="the .jsonl file to write")
    args = parser.parse_args(arguments)
    if args.path:
        print(Path(__file__).resolve())
        return
    if not (args.tasks and args.out):
        parser.error("tasks and out are needed (or --path)")
    try:
        tasks = load_tasks(args.tasks, "eval" if "split=" in args.tasks else "train")
        tasks[0].make().close()  # refuses an environment or arguments that do not exist
    except (ValueError, TypeError, ImportError, OSError) as error:
        parser.error(str(error))
    write_rows(tasks, args.out)
    print(f"{len(tasks)} tasks in {args.out}")


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
