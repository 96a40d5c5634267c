"""The interface of rl-square 0.0.2: ``reset`` and ``step``, and what is wrapped around RL2's own functions."""

from __future__ import annotations

from collections.abc import Callable
from contextvars import ContextVar
from types import SimpleNamespace
from typing import Any

from gem.core import Env
from gem.rollout import (
    Episode,
    Response,
    SteppedEpisode,
    begin_run,
    check_gamma,
    check_tasks,
    mean_metrics,
    shared_runner,
)
from gem.tasks import Task
from gem_rl2_batches import fill_updates, filtered, leave_out, take_back_filler
from gem_rl2_options import (
    context_of,
    key_of,
    limits_of,
    options_of,
    record_episode,
    renderer_of,
    task_of_row,
    tasks_of,
)
from gem_rl2_turns import bridge_after_turn, next_state, response_of, reward_and_end, stopping_params, text_of


class Job:
    """What holds for a whole training with rl-square 0.0.2; made before its first rollout.

    Args:
        rollout: RL2's ``Rollout``.

    Raises:
        ValueError: a key of the configuration makes no sense, or the rows are no tasks, or of the wrong split.
    """

    def __init__(self, rollout: Any) -> None:
        config = rollout.config
        options = options_of(config)
        if options.max_turns is not None:
            raise ValueError("rl-square 0.0.2 has rollout.max_turns: set that, and not rollout.gem.max_turns")
        self.options = options = options._replace(max_turns=config.max_turns, max_context=context_of(config, options))
        self.renderer = renderer_of(rollout.tokenizer, options)
        sampling = {True: rollout.train_sampling_params, False: rollout.test_sampling_params}
        self.limits = {train: limits_of(options, params) for train, params in sampling.items()}
        check_gamma(float(key_of(config, "adv.gamma", 1.0)))
        workers = ("actor", "critic") if key_of(config, "adv.estimator") == "gae" else ("actor",)
        self.updates = [int(key_of(config, f"{worker}.update_per_rollout", 1)) for worker in workers]
        self.tasks = {train: tasks_of(config, train) for train in (True, False)}
        if options.episodes is not None:
            begin_run(options.episodes, resume=key_of(config, "trainer.load_ckpt_from") is not None)
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


class Batch:
    """The rollouts of one call of RL2's."""

    def __init__(self, job: Job, train: bool, step: int | None) -> None:
        self.job, self.train, self.step = job, train, step
        self.episodes: list[Episode] = []


class Trajectory:
    """What is known of a trajectory of rl-square 0.0.2 while it is made."""

    def __init__(self, job: Job, train: bool) -> None:
        self.job, self.train = job, train
        self.stepped: SteppedEpisode | None = None
        self.response: Response | None = None
        self.next_ids: list[int] | None = None
        """Those of the text that ``reset`` or ``step`` has returned last."""
        self.has_filler = False
        """Whether RL2 was given a token where the engine had sampled none; it is the trajectory's last."""


_batch: ContextVar[Batch | None] = ContextVar("gem_rl2_batch", default=None)
_trajectory: ContextVar[Trajectory | None] = ContextVar("gem_rl2_trajectory", default=None)
"""That of the running coroutine: RL2 makes each trajectory in a coroutine of its own."""


class ReleaseEnv:
    """The functions that rl-square 0.0.2 calls."""

    make_env: Callable[[Task], Env]

    async def reset(self, extra_info: dict[str, Any]) -> tuple[str, dict[str, Any]]:
        """Begin the task of a row (rl-square 0.0.2).

        Raises:
            ContextTooSmall, ValueError, TypeError, ImportError: see :func:`gem.rollout.check_tasks`; or the row is no
                task.
        """
        trajectory = current_trajectory()
        stepped = trajectory.job.stepped(task_of_row(extra_info), trajectory.train, self.make_env)
        trajectory.stepped = stepped
        trajectory.next_ids = list((await stepped.start()).prompt_ids)
        return text_of(trajectory.job.renderer.tokenizer, trajectory.next_ids), extra_info

    async def step(self, state: str, action: str, extra_info: dict[str, Any]) -> dict[str, Any]:
        """Run a turn (rl-square 0.0.2) with what the engine has just sampled, of which ``action`` is the text."""
        trajectory = current_trajectory()
        stepped, response = trajectory.stepped, trajectory.response
        if stepped is None or stepped.request is None or response is None:
            raise RuntimeError("step was called without a reset, or without a request to the engine, before it")
        following = await stepped.answer(response)
        trajectory.response = None
        answer = {**reward_and_end(stepped.episode, response, following), "extra_info": extra_info}
        if following is not None:
            bridge = bridge_after_turn(stepped.episode, following)
            trajectory.next_ids = list(following.prompt_ids) if bridge is None else bridge
            text = text_of(trajectory.job.renderer.tokenizer, trajectory.next_ids)
            answer["next_state"] = next_state(state + action, text, extends=bridge is not None)
        return answer


def current_trajectory() -> Trajectory:
    """Return that of the running coroutine."""
    trajectory = _trajectory.get()
    if trajectory is None:
        raise RuntimeError("reset and step are for RL2's rollout, which calls them for one trajectory after another")
    return trajectory


def job_of(rollout: Any) -> Job:
    """Return the job of RL2's ``Rollout``, made by the first call."""
    if not hasattr(rollout, "gem_job"):
        rollout.gem_job = Job(rollout)
    return rollout.gem_job


def batched(original: Callable[..., Any]) -> Callable[..., Any]:
    """Return ``Rollout.__call__`` of 0.0.2, for batches of which some episodes were left out."""
    import torch.distributed as dist
    import wandb

    def of_batch(self: Any, data_list: Any, train: bool, step: int) -> Any:
        if dist.get_rank() != 0:
            return original(self, data_list, train, step)
        for data in data_list:
            task_of_row(data)
        batch = Batch(job_of(self), train, step)
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
            tensor_dict, cu_seqs, ratio = filtered(tensor_dict, cu_seqs, self.config.responses_per_prompt)
            wandb.log({"dynamic_filtering_ratio": ratio}, step=step)
        for updates in batch.job.updates:
            fill_updates(tensor_dict, updates)
        return tensor_dict, cu_seqs

    return of_batch


def recorded(original: Callable[..., Any]) -> Callable[..., Any]:
    """Return ``Rollout.rollout`` of 0.0.2, of which each trajectory is an episode."""

    async def rollout(self: Any, data: Any, train: bool) -> Any:
        batch = _batch.get() or Batch(job_of(self), train, None)
        trajectory = Trajectory(batch.job, train)
        token = _trajectory.set(trajectory)
        try:
            tensor_dicts, metric = await original(self, data, train)
            assert trajectory.stepped is not None, "rows without an environment are refused"
            episode, options = trajectory.stepped.episode, batch.job.options
            batch.episodes.append(episode)
            record_episode(options, episode, batch.step)
            if trajectory.has_filler:
                take_back_filler(tensor_dicts[-1])
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


def logged(original: Callable[..., Any]) -> Callable[..., Any]:
    """Return 0.0.2's ``gather_and_log``, with the metrics of the episodes."""

    def gather_and_log(metrics: dict[str, list[float]], step: int) -> None:
        batch = _batch.get()
        if batch is not None:
            suffix = "train" if batch.train else "test"
            means = {f"gem/{name}/{suffix}": [value] for name, value in mean_metrics(batch.episodes).items()}
            metrics = {name: values for name, values in metrics.items() if values} | means
        original(metrics, step)

    return gather_and_log


def with_ids(original: Callable[..., Any]) -> Callable[..., Any]:
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


def observed(original: Callable[..., Any]) -> Callable[..., Any]:
    """Return 0.0.2's request to the engine, of which the module takes note."""

    async def async_generate(url: str, states: list[int], sampling_params: dict[str, Any]) -> Any:
        trajectory = _trajectory.get()
        if trajectory is None or trajectory.stepped is None or trajectory.stepped.request is None:
            return await original(url, states, sampling_params)
        request, renderer = trajectory.stepped.request, trajectory.job.renderer
        if states != list(request.prompt_ids):
            raise RuntimeError("RL2 asks the engine for another prompt than that of the episode")
        params = {**stopping_params(sampling_params, renderer), "max_new_tokens": request.max_new_tokens}
        answer = await original(url, states, params)
        trajectory.response = response_of(answer, renderer)
        if not trajectory.response.token_ids:
            trajectory.has_filler = True  # RL2 fails without a token
            answer["meta_info"]["output_token_logprobs"] = [[0.0, states[-1], None]]
        return answer

    return async_generate
