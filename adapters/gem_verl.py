r"""GEM for verl: train on any GEM environment with verl's own trainer, by adding keys to its configuration.

.. code-block:: bash

    python -m verl.trainer.main_ppo ... \
        data.custom_cls.path=pkg://gem_verl data.custom_cls.name=GemTaskDataset \
        "data.train_files='env=game:GuessTheNumber-v1-easy,seeds=0:1024'" \
        "data.val_files='env=game:GuessTheNumber-v1-easy,seeds=0:64,split=eval'" \
        actor_rollout_ref.rollout.agent.agent_loop_config_path=gem.yaml

.. code-block:: yaml

    - name: gem                           # gem.yaml; leave the file out if the defaults do
      _target_: gem_verl.GemAgentLoop
      mode: concat                        # or turn
      max_new_tokens: 64                  # of one turn; data.max_response_length is of the episode

How GEM maps to verl:

* A row of the data set is a task; ``rollout.n`` sessions of a row begin from one seed.
* The ids of an episode reach the actor as they were sampled. They are the runner's, not those of verl's
  continuous-token builder, which agree with them on turns that end with the end token.
* ``mode: concat`` gives one sample per episode; **every turn's reward is on its last sampled token** (``rm_scores``).
  GRPO sums them; GAE and ``gem_rebn`` use them where they are.
* ``mode: turn`` gives one sample per turn, whose last token has the **discounted return from this turn on** (gamma is
  ``algorithm.gamma``); with ``adv_estimator=grpo``, which compares whole sessions, and in validation it has the
  episode's return.
* ``algorithm.adv_estimator=gem_rebn`` (with ``critic.enable=False``) is ReBN: one advantage per turn.
* An invalid episode (its environment or the engine failed) gives the trainer no row in training, so it moves neither
  the policy nor a baseline: ``on_error: mask``, the default.
* Validation logs ``val-core/<env id>/acc`` (success) and ``val-aux/<env id>/...``; training logs ``gem/...`` with
  ``trainer.v1.sampler.custom_sampler.path=pkg://gem_verl`` and ``custom_sampler.name=GemReplayBuffer``. This buffer is
  also what counts the episodes that were left out, and what goes on where a whole batch failed.

Works with verl 0.9.x and its V1 trainer (``trainer.use_v1``, the default).
"""

from __future__ import annotations

import functools
import inspect
import json
import logging
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any
from uuid import uuid4

try:
    import torch
    import transfer_queue
    from verl import __version__ as verl_version
    from verl.experimental.agent_loop.agent_loop import AgentLoopBase, AgentLoopMetrics, AgentLoopOutput, register
    from verl.trainer.ppo.core_algos import register_adv_est
    from verl.trainer.ppo.v1.replay_buffer import ReplayBuffer, ReplayBufferAsync
    from verl.utils.checkpoint.checkpoint_manager import find_latest_ckpt_path
    from verl.utils.import_utils import load_extern_object, resolve_config_path
    from verl.workers.rollout.replica import TokenOutput
except ImportError as error:
    raise ImportError(f"gem_verl needs verl and what it needs ({error}): pip install 'gem-adapters[verl]'") from error

from hydra.utils import instantiate
from omegaconf import OmegaConf
from omegaconf.errors import ConfigKeyError
from torch.utils.data import Dataset

from gem.core import Env
from gem.rollout import (
    ChatRenderer,
    ContextTooSmall,
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
    drop_overlong,
    rebn,
    shared_runner,
    spread_over_tokens,
)
from gem.rollout.metrics import FAILURES, OF_EACH_ENV
from gem.tasks import Task, load_tasks

if verl_version.split(".")[:2] != ["0", "9"]:
    raise ImportError(
        f"gem_verl works with verl 0.9.x, and verl {verl_version} is installed: pip install 'gem-adapters[verl]'"
    )

logger = logging.getLogger("gem.verl")

FAILED_BATCHES = 4
"""So many batches in a row without a valid episode end the run."""

NO_WEIGHT = "no_weight"
"""The extra field of a row that is there to be counted only."""

COMPARED_IN_GROUPS = frozenset(
    {"grpo", "grpo_vectorized", "grpo_passk", "gdpo", "rloo", "rloo_vectorized", "opo", "gpg"}
    | {"reinforce_plus_plus_baseline", "optimal_token_baseline", "tir_optimal_token_baseline"}
)
"""verl's estimators whose baseline is of a group. In a group of one, most of them take the return for the advantage."""


@dataclass(frozen=True)
class LoopOptions:
    """The options of :class:`GemAgentLoop`, in the YAML file of ``agent_loop_config_path``.

    Attributes:
        mode: ``concat``, one sample per episode; or ``turn``, one sample per turn.
        max_turns: turns per episode; None for as many as the environment allows.
        max_new_tokens: tokens per turn; None for ``data.max_response_length``.
        step_timeout: seconds that a step of a blocking environment may take.
        retries: how often an episode is begun again whose environment fails before the first token is sampled.
        on_error: ``mask``: an invalid episode (:attr:`gem.rollout.Episode.valid`) is left out of what is learned;
            ``keep``: it is learned from, with the rewards that it had until then.
        episodes: a folder for the episodes as JSON lines; :func:`gem.rollout.read_episodes` reads them.
        make_env: builds a task's environment; wrappers go in here. In YAML:
            ``{_target_: hydra.utils.get_method, path: my_module.make_env}``.

    Raises:
        ValueError: an option has no such value.
    """

    mode: str = "concat"
    max_turns: int | None = None
    max_new_tokens: int | None = None
    step_timeout: float | None = 60.0
    retries: int = 2
    on_error: OnError = "mask"
    episodes: str | None = None
    make_env: Callable[[Task], Env] = Task.make

    def __post_init__(self) -> None:
        if self.mode not in ("concat", "turn"):
            raise ValueError(f"mode is 'concat' or 'turn', got {self.mode!r}")
        check_on_error(self.on_error)

    @classmethod
    def read(cls, given: Mapping[str, Any]) -> LoopOptions:
        """Return options from a configuration.

        Raises:
            TypeError: there is no such option.
            ValueError: an option has no such value.
        """
        names = [field.name for field in fields(cls)]
        if unknown := sorted(set(given) - set(names)):
            raise TypeError(f"GemAgentLoop has no option {', '.join(unknown)}: there are {', '.join(names)}")
        return cls(**given)

    def limits(self, rollout: Any) -> Limits:
        """Return the limits of an episode.

        Args:
            rollout: ``actor_rollout_ref.rollout``.

        Raises:
            ValueError: an option has no such value.
        """
        length = rollout.response_length
        if self.max_new_tokens is not None and self.max_new_tokens > length:
            raise ValueError(f"max_new_tokens={self.max_new_tokens} is more than data.max_response_length={length}")
        return Limits(
            self.max_turns,
            length if self.max_new_tokens is None else self.max_new_tokens,
            max_context=rollout.get("max_model_len") or rollout.prompt_length + length,
            max_completion=length if self.mode == "concat" else None,
            step_timeout=self.step_timeout,
            retries=self.retries,
        )


class GemTaskDataset(Dataset):
    """verl's ``data.custom_cls``: one row per task, from expressions and files (:func:`gem.tasks.load_tasks`).

    Tasks of ``data.train_files`` are of the split ``train``, those of ``data.val_files`` of the split ``eval``, so
    that they share no episode, whatever their seeds. The whole job is checked here, since verl makes the data sets
    before anything is loaded: every environment is built, some tasks are begun, and their first prompts measured
    (:func:`gem.rollout.check_tasks`). ``data.filter_overlong_prompts=True`` begins all tasks and drops those whose
    first prompt is longer than ``data.max_prompt_length``.

    Args:
        data_files: ``data.train_files`` or ``data.val_files``: an expression, a path, or several, which are mixed.
        tokenizer: the model's tokenizer.
        config: ``data``, as a part of the whole configuration.
        processor: not used.
        max_samples: take the first so many tasks; -1 for all.

    Raises:
        ValueError: a source cannot be read, or has tasks of the other split; ``data.max_prompt_length`` is too small
            for a first prompt; ``algorithm.gamma`` or an option of the agent loop has no such value; or the folder of
            episodes holds those of another run.
        TypeError: the agent loop or an environment has no such option.
        ImportError: an environment needs what is not installed.
    """

    def __init__(
        self, data_files: Any, tokenizer: Any, config: Any, processor: Any = None, max_samples: int = -1
    ) -> None:
        split = _split_of(data_files, config)
        self.tasks = load_tasks(data_files if isinstance(data_files, str) else list(data_files), split)
        if max_samples > 0:
            self.tasks = self.tasks[:max_samples]
        options = _checked_options(config)
        self._check_prompts(_renderer(tokenizer, config), config, options)
        if split == "train" and options.episodes is not None:
            begin_run(options.episodes, resume=_resumes(_of_job(config, "trainer")))

    def _check_prompts(self, renderer: ChatRenderer, config: Any, options: LoopOptions) -> None:
        longest = config.max_prompt_length
        limits = Limits(max_new_tokens=1, max_context=longest + 1, step_timeout=options.step_timeout)
        try:
            if config.get("filter_overlong_prompts"):
                self.tasks = drop_overlong(self.tasks, renderer, limits, options.make_env)
            check_tasks(self.tasks, renderer, limits, options.make_env)
        except ContextTooSmall as error:
            raise ValueError(
                f"data.max_prompt_length={longest} is too small: the first prompt of {error.task.env_id} "
                f"(seed {error.task.seed}) has {error.prompt_length} tokens. Set data.max_prompt_length to "
                f"{error.prompt_length} or more."
            ) from None

    def __len__(self) -> int:
        return len(self.tasks)

    def __getitem__(self, index: int) -> dict[str, Any]:
        task = self.tasks[index]
        return {
            "raw_prompt": [{"role": "user", "content": f"{task.env_id}#{task.seed}"}],  # for logs only
            "data_source": task.env_id,
            "agent_name": "gem",
            "index": index,
            "task": task.to_json(),
        }


def _split_of(data_files: Any, config: Any) -> str:
    """Return which split is being read, which verl shows by the value only."""
    is_train, is_val = data_files == config.get("train_files"), data_files == config.get("val_files")
    if is_train and is_val:
        raise ValueError(
            f"data.train_files and data.val_files are both {data_files!r}, so they cannot be told apart: "
            "write ',split=eval' at the end of data.val_files"
        )
    return "eval" if is_val else "train"


def _of_job(data_config: Any, key: str) -> Any:
    """Return a part of the configuration whose part ``data`` is; None if ``data`` stands alone."""
    try:
        return OmegaConf.select(data_config, f"..{key}")
    except ConfigKeyError:
        return None


def _checked_options(data_config: Any) -> LoopOptions:
    """Return the agent loop's options. Else a wrong one would show in verl's workers, episode by episode."""
    path = _of_job(data_config, "actor_rollout_ref.rollout.agent.agent_loop_config_path")
    options = LoopOptions()
    for entry in OmegaConf.load(resolve_config_path(path)) if path else ():
        if entry.get("_target_") == f"{__name__}.GemAgentLoop":
            given = {name: value for name, value in entry.items() if name not in ("_target_", "name")}
            options = LoopOptions.read(instantiate(given, _convert_="all"))
    if (rollout := _of_job(data_config, "actor_rollout_ref.rollout")) is not None:
        options.limits(rollout)
    if (gamma := _of_job(data_config, "algorithm.gamma")) is not None:
        check_gamma(gamma)
    return options


def _resumes(trainer: Any) -> bool:
    """Return whether verl will go on from a checkpoint."""
    if trainer is None or trainer.resume_mode == "disable":
        return False
    return trainer.resume_mode == "resume_path" or find_latest_ckpt_path(trainer.default_local_dir) is not None


def _renderer(tokenizer: Any, data_config: Any) -> ChatRenderer:
    template_kwargs = OmegaConf.to_container(OmegaConf.create(data_config.get("apply_chat_template_kwargs") or {}))
    return _cached_renderer(
        tokenizer,
        data_config.get("system"),
        data_config.get("tool_role", False),
        json.dumps(template_kwargs, sort_keys=True),
        data_config.get("allow_control_tokens", False),
    )


@functools.lru_cache(maxsize=8)
def _cached_renderer(
    tokenizer: Any, system: str | None, tool_role: bool, template_kwargs: str, allow_control_tokens: bool
) -> ChatRenderer:
    return ChatRenderer(tokenizer, system, tool_role, json.loads(template_kwargs), allow_control_tokens)


class DenseOutput(AgentLoopOutput):
    """verl's output with one reward per token: ``as_dict`` is the only place where ``rm_scores`` is made."""

    token_rewards: list[float]

    def as_dict(self) -> dict[str, Any]:
        """Return the fields that verl stores."""
        fields = super().as_dict()
        fields["rm_scores"] = torch.tensor(fields.pop("token_rewards"), dtype=torch.float32)
        return fields


@register("gem")
class GemAgentLoop(AgentLoopBase):
    """verl's agent loop: runs the episode of a row. Its options are :class:`LoopOptions`.

    What renders the observations is set in ``data``, as it is for verl's own agent loops: ``+data.system=...`` is a
    system message, ``+data.apply_chat_template_kwargs...`` are arguments of the chat template, with
    ``+data.tool_role=True`` a tool's observation is a message of the role ``tool``, and ``+data.allow_control_tokens``
    lets environments write control tokens, see :class:`gem.rollout.ChatRenderer`.

    Raises:
        TypeError: there is no such option.
        ValueError: an option has no such value.
    """

    def __init__(self, *, name: str = "gem", tools: Any = None, **options: Any) -> None:
        known = set(inspect.signature(AgentLoopBase.__init__).parameters)
        super().__init__(**{name: options.pop(name) for name in known & set(options)})
        self.options = LoopOptions.read(options)
        limits = self.options.limits(self.rollout_config)
        self.runner = shared_runner(_renderer(self.tokenizer, self.data_config), limits, self.options.make_env)

    async def run(self, sampling_params: dict[str, Any], **row: Any) -> list[AgentLoopOutput]:
        """Run the episode of a row.

        Returns:
            One output, or in the mode ``turn`` one per turn. In training none of an episode that is left out, or one
            of no weight if there is a :class:`GemReplayBuffer` that counts it and takes it out.

        Raises:
            ValueError: the row has no task; or the set-up is wrong, see :func:`gem.rollout.run_episodes`.
        """
        if "task" not in row:
            raise ValueError("the row has no task: set data.custom_cls.path=pkg://gem_verl, .name=GemTaskDataset")
        engine = _Server(self.server_manager, sampling_params, self.tokenizer, self.runner.renderer)
        episode = await self.runner.run(Task.from_json(row["task"]), engine)
        if self.options.episodes is not None:
            append_episode(self.options.episodes, episode, row.get("global_steps"))
        if episode.turns and (episode.valid or self.options.on_error == "keep"):
            return self._samples(episode, engine)
        sampler = self.config.trainer.v1.sampler.custom_sampler
        if episode.task.split == "train" and not _is_gem_buffer(sampler.path, sampler.name):
            return []
        # Rows are all that reaches the replay buffer, and all that verl's validation counts.
        end = [self.tokenizer.eos_token_id]
        fields = {"prompt_ids": end, "response_ids": end, "response_mask": [0], "token_rewards": [0.0]}
        row_to_count = _as_output(episode, engine, None, **fields)
        row_to_count.extra_fields[NO_WEIGHT] = True
        return [row_to_count]

    def _samples(self, episode: Episode, engine: _Server) -> list[AgentLoopOutput]:
        if self.options.mode == "concat":
            if not episode.append_only:
                raise ValueError(
                    f"a wrapper rewrites the history of {episode.task.env_id}, so an episode is not one sequence: set "
                    "mode: turn in the agent loop's configuration"
                )
            whole = episode.as_sequence()
            sample = _as_output(
                episode,
                engine,
                engine.outputs[len(episode.turns) - 1],
                prompt_ids=whole.prompt_ids.tolist(),
                response_ids=whole.completion_ids.tolist(),
                response_mask=whole.mask.tolist(),
                response_logprobs=None if whole.logprobs is None else whole.logprobs.tolist(),
                token_rewards=whole.rewards.tolist(),
            )
            return [sample]
        return [
            _as_output(
                episode,
                engine,
                output,
                prompt_ids=list(turn.prompt_ids),
                response_ids=list(turn.response_ids),
                response_mask=[1] * len(turn.response_ids),
                response_logprobs=turn.logprobs,
                token_rewards=[0.0] * (len(turn.response_ids) - 1) + [turn_return],
            )
            for turn, output, turn_return in zip(episode.turns, engine.outputs, self._returns(episode), strict=False)
        ]

    def _returns(self, episode: Episode) -> list[float]:
        """Return what each turn's sample is worth, in the mode ``turn``."""
        if self.config.algorithm.adv_estimator == "grpo" or episode.task.split != "train":
            return [episode.total_reward] * len(episode.turns)  # verl takes one sample of them for the whole session
        return discounted_returns(episode.rewards, self.config.algorithm.gamma).tolist()


@functools.lru_cache(maxsize=8)
def _is_gem_buffer(path: str | None, name: str | None) -> bool:
    return bool(path and name) and issubclass(load_extern_object(path, name), _GemSampling)


def _as_output(episode: Episode, engine: _Server, output: TokenOutput | None, **fields: Any) -> DenseOutput:
    of_server = {} if output is None else output.extra_fields
    extra = {"env_id": episode.task.env_id, "reward_extra_info": _metrics(episode)}
    return DenseOutput(
        **fields,
        routed_experts=None if output is None else output.routed_experts,
        reward_score=sum(fields["token_rewards"]),  # so that verl runs no reward function
        num_turns=2 * len(episode.turns),  # messages, as verl counts them
        metrics=AgentLoopMetrics(generate_sequences=engine.seconds),
        extra_fields={**of_server, **engine.versions(), **extra},
    )


def _metrics(episode: Episode) -> dict[str, float | None]:
    """Return an episode's metrics; of an invalid one, None for those that show what the model does."""
    metrics = {name: value if episode.valid or name in FAILURES else None for name, value in episode.metrics().items()}
    metrics["acc"] = metrics.pop("success")  # what verl takes for the core metric
    return metrics


class _Server(Engine):
    """verl's inference servers, as they serve one episode."""

    def __init__(self, client: Any, sampling_params: dict[str, Any], tokenizer: Any, renderer: ChatRenderer) -> None:
        self.client = client
        # vLLM, SGLang and TensorRT-LLM have the same name for it. The server adds the model's own end tokens.
        self.sampling_params = {**sampling_params, "stop_token_ids": list(renderer.stop_ids)}
        self.end_ids = {tokenizer.eos_token_id, *renderer.stop_ids}
        self.request_id = uuid4().hex  # one per episode: all its turns go to the server that has its prefix
        self.outputs: list[TokenOutput] = []
        self.seconds = 0.0

    async def generate(self, prompt_ids: Sequence[int], max_new_tokens: int, *, episode: int = 0) -> Response:
        since = time.perf_counter()
        output = await self.client.generate(
            request_id=self.request_id,
            prompt_ids=list(prompt_ids),
            sampling_params={**self.sampling_params, "max_tokens": max_new_tokens},
        )
        self.seconds += time.perf_counter() - since
        self.outputs.append(output)
        ids = list(output.token_ids)
        logprobs = None if output.log_probs is None else list(output.log_probs)
        if not ids or output.stop_reason in ("abort", "aborted"):
            return Response(ids, logprobs, "abort")
        # The server's own reason is of no use: of vLLM's "stop" and "length" verl makes "completed".
        stopped = ids[-1] in self.end_ids or len(ids) < max_new_tokens
        return Response(ids, logprobs, "stop" if stopped else "length")

    def versions(self) -> dict[str, Any]:
        """Return which versions of the weights the episode was sampled with."""
        first = [output.extra_fields.get("min_global_steps") for output in self.outputs]
        last = [output.extra_fields.get("max_global_steps") for output in self.outputs]
        known = bool(self.outputs) and None not in first and None not in last
        return {"min_global_steps": min(first) if known else None, "max_global_steps": max(last) if known else None}


@register_adv_est("gem_rebn")
def compute_rebn_advantage(
    token_level_rewards: torch.Tensor, response_mask: torch.Tensor, config: Any = None, **_: Any
) -> tuple[torch.Tensor, torch.Tensor]:
    """Verl's ``algorithm.adv_estimator=gem_rebn``: :func:`gem.rollout.rebn`, over every turn of the batch.

    A turn is a run of sampled tokens; its reward is the sum of what lies on these tokens and on the bridge before
    them. Rows that verl adds to fill a batch have no sampled token, and do not count. Rejection of
    single tokens (``algorithm.rollout_correction``) would cut turns in two; whole sequences may be rejected.

    Args:
        token_level_rewards: (B, T).
        response_mask: (B, T), 1 where a token was sampled.
        config: ``algorithm``; ``gamma`` is the discount per turn.

    Returns:
        Advantages and returns, each (B, T): every sampled token has those of its turn.
    """
    mask = response_mask.bool().cpu()
    following = torch.cat([mask[:, 1:], torch.zeros_like(mask[:, :1])], dim=1)
    ends = mask & ~following
    turn_ends = [torch.nonzero(row).flatten().tolist() for row in ends]
    turn_of_token = ends.cumsum(dim=1) - ends.long()
    sums = torch.zeros(mask.shape[0], mask.shape[1] + 1, dtype=torch.float64)
    sums.scatter_add_(1, turn_of_token, token_level_rewards.detach().cpu().double())
    rewards = [row[: len(of_row)].tolist() for row, of_row in zip(sums, turn_ends, strict=True)]
    gamma = float(config.gamma)

    def spread(of_turns: Sequence[Any]) -> torch.Tensor:
        of_tokens = spread_over_tokens(of_turns, turn_ends, response_mask.shape[1])
        return torch.tensor(of_tokens).to(token_level_rewards) * response_mask

    return spread(rebn(rewards, gamma)), spread([discounted_returns(row, gamma) for row in rewards])


class _GemSampling:
    """What GEM adds to verl's replay buffers, which hand the trainer its batches."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        trainer = getattr(kwargs.get("refill_fn"), "__self__", None)
        algorithm = {} if trainer is None else trainer.config.algorithm
        if (algorithm.get("filter_groups") or {}).get("enable", False):
            raise ValueError(
                "verl leaves algorithm.filter_groups to a custom sampler, and GemReplayBuffer does not filter: use one "
                "or the other"
            )
        self.in_groups = algorithm.get("adv_estimator") in COMPARED_IN_GROUPS
        interval = (kwargs.get("sampler_kwargs") or {}).get("poll_interval")
        super().__init__(*args, **kwargs, **({} if interval is None else {"poll_interval": interval}))

    def sample(self, global_steps: int, partition_id: str, batch_size: int) -> tuple[Any, dict[str, Any]]:
        """Sample a batch as verl does; in training, take out the rows of no weight, and add the metrics.

        A batch without a valid episode is replaced by one of the next tasks.

        Raises:
            RuntimeError: several batches in a row had no valid episode.
        """
        if partition_id != "train":
            return super().sample(global_steps, partition_id, batch_size)  # type: ignore[misc]
        played: list[_Played] = []
        for attempt in range(FAILED_BATCHES):
            if attempt:
                logger.warning("step %d: no episode of the batch is valid; the next tasks are run", global_steps)
                self.refill_fn(batch_size)  # type: ignore[attr-defined]
            batch, metrics = super().sample(global_steps, partition_id, batch_size)  # type: ignore[misc]
            rows = _played(batch)
            played += rows
            kept = self._learned_from(batch.keys, rows)
            if dropped := [key for key in batch.keys if key not in kept]:
                transfer_queue.kv_clear(keys=dropped, partition_id=partition_id)
            if kept:
                return batch.select_keys(list(kept)), {**metrics, **_means(played)}
        raise RuntimeError(
            f"{FAILED_BATCHES} batches in a row had no valid episode: the environment, a tool or the inference server "
            "fails for good. The last errors are in the log of verl's agent-loop workers."
        )

    def _learned_from(self, keys: Sequence[str], rows: Sequence[_Played]) -> dict[str, None]:
        """Return the keys of the batch that the trainer is to learn from, in their order."""
        sessions: dict[str, list[_Played]] = defaultdict(list)
        for row in rows:
            sessions[row.session.rpartition("_")[0]].append(row)
        left_out = {row.session for row in rows if row.no_weight}
        for group in sessions.values():
            valid = [row.session for row in group if not row.no_weight]
            if self.in_groups and len(valid) == 1 < len(group):  # there is nothing left to compare it with
                left_out.add(valid[0])
        return dict.fromkeys(key for key in keys if key.rpartition("_")[0] not in left_out)


class GemReplayBuffer(_GemSampling, ReplayBuffer):
    """verl's ``trainer.v1.sampler.custom_sampler`` for the synchronous trainer.

    It logs the episodes' metrics under ``gem/``, counts those that are left out, and goes on where a whole batch
    failed. ``+trainer.v1.sampler.sampler_kwargs.poll_interval=0.1`` makes it look for finished episodes more often than
    every two seconds.
    """


class GemReplayBufferAsync(_GemSampling, ReplayBufferAsync):
    """The same for verl's asynchronous trainers."""


@dataclass(frozen=True)
class _Played:
    """An episode of a batch.

    Attributes:
        session: verl's key of it, ``<uid>_<session>``.
        env_id: of its environment; None if another agent loop has run it.
        metrics: by name; None for those that do not count.
        no_weight: whether its row is there to be counted only.
    """

    session: str
    env_id: str | None
    metrics: dict[str, float | None]
    no_weight: bool


def _played(batch: Any) -> list[_Played]:
    """Return a batch's episodes; the last sample of each stands for it."""
    last: dict[str, tuple[int, str]] = {}
    for key in batch.keys:
        session, _, index = key.rpartition("_")
        last[session] = max(last.get(session, (-1, "")), (int(index), key))
    keys = [key for _, key in last.values()]
    stored = transfer_queue.kv_batch_get(keys=keys, partition_id=batch.partition_id, select_fields=["extra_fields"])
    episodes = []
    for session, extra in zip(last, stored["extra_fields"], strict=True):
        metrics = dict(extra["reward_extra_info"]) if "env_id" in extra else {}
        if "acc" in metrics:
            metrics["success"] = metrics.pop("acc")
        episodes.append(_Played(session, extra.get("env_id"), metrics, extra.get(NO_WEIGHT, False)))
    return episodes


def _means(played: Sequence[_Played]) -> dict[str, float]:
    """Return means over episodes, as :func:`gem.rollout.mean_metrics` does."""
    ids = {row.env_id for row in played} - {None}
    values: dict[str, list[float]] = defaultdict(list)
    for row in played:
        for name, value in row.metrics.items():
            if value is not None:
                values[f"gem/{name}"].append(value)
                if len(ids) > 1 and name in OF_EACH_ENV:
                    values[f"gem/{name}/{row.env_id}"].append(value)
    return {name: sum(some) / len(some) for name, some in values.items()}
