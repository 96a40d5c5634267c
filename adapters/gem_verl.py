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
* The ids of an episode reach the actor as they were sampled. They are the driver's, not those of verl's
  continuous-token builder, which agree with them on turns that end with the end token.
* ``mode: concat`` gives one sample an episode; **every turn's reward is on its last sampled token** (``rm_scores``).
  GRPO sums them; GAE and ``gem_rebn`` use them where they are.
* ``mode: turn`` gives one sample a turn, whose last token has the **discounted return from this turn on** (gamma is
  ``algorithm.gamma``); with ``adv_estimator=grpo``, which compares whole sessions, and in validation it has the
  episode's return.
* ``algorithm.adv_estimator=gem_rebn`` (with ``critic.enable=False``) is ReBN: one advantage a turn.
* Validation logs ``val-core/<env id>/acc`` (success) and ``val-aux/<env id>/...``; training logs ``gem/...`` with
  ``trainer.v1.sampler.custom_sampler.path=pkg://gem_verl`` and ``custom_sampler.name=GemReplayBuffer``.

Works with verl 0.9.x and its V1 trainer (``trainer.use_v1``, the default).
"""

from __future__ import annotations

import functools
import inspect
import json
import time
from collections.abc import Callable, Sequence
from typing import Any
from uuid import uuid4

try:
    import torch
    import transfer_queue
    from verl import __version__ as verl_version
    from verl.experimental.agent_loop.agent_loop import AgentLoopBase, AgentLoopMetrics, AgentLoopOutput, register
    from verl.trainer.ppo.core_algos import register_adv_est
    from verl.trainer.ppo.v1.replay_buffer import ReplayBuffer, ReplayBufferAsync
    from verl.workers.rollout.replica import TokenOutput
except ImportError as error:
    raise ImportError(f"gem_verl needs verl and what it needs ({error}): pip install 'gem-adapters[verl]'") from error

from anyio.from_thread import start_blocking_portal
from omegaconf import OmegaConf
from torch.utils.data import Dataset

from gem.core import Env
from gem.rollout import (
    ChatRenderer,
    ContextTooSmall,
    Engine,
    Episode,
    Limits,
    Response,
    append_episode,
    discounted_returns,
    rebn,
    run_episodes,
    shared_player,
    spread_over_tokens,
)
from gem.tasks import Task, load_tasks

if verl_version.split(".")[:2] != ["0", "9"]:
    raise ImportError(
        f"gem_verl works with verl 0.9.x, and verl {verl_version} is installed: pip install 'gem-adapters[verl]'"
    )

REHEARSED = 64
"""Tasks whose first prompt is made before training, to see that it fits."""


class GemTaskDataset(Dataset):
    """verl's ``data.custom_cls``: a row a task, from expressions and files (:func:`gem.tasks.load_tasks`).

    Tasks of ``data.train_files`` are of the split ``train``, those of ``data.val_files`` of the split ``eval``, so
    that they share no episode, whatever their seeds.

    Args:
        data_files: ``data.train_files`` or ``data.val_files``: an expression, a path, or a list of them.
        tokenizer: the model's tokenizer.
        config: ``data``.
        processor: not used.
        max_samples: take the first so many tasks; -1 for all.

    Raises:
        ValueError: a source cannot be read, or ``data.max_prompt_length`` is too small for a first prompt.
    """

    def __init__(
        self, data_files: Any, tokenizer: Any, config: Any, processor: Any = None, max_samples: int = -1
    ) -> None:
        split = _split_of(data_files, config)
        sources = [data_files] if isinstance(data_files, str) else list(data_files)
        self.tasks = [task for source in sources for task in load_tasks(source, split)]
        if max_samples > 0:
            self.tasks = self.tasks[:max_samples]
        _rehearse(self.tasks, _renderer(tokenizer, config), config.max_prompt_length)

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
    """Return which split is being read: verl does not say, except by the value."""
    is_train, is_val = data_files == config.get("train_files"), data_files == config.get("val_files")
    if is_train and is_val:
        raise ValueError(
            f"data.train_files and data.val_files are both {data_files!r}, so they cannot be told apart: "
            "write ',split=eval' at the end of data.val_files"
        )
    return "eval" if is_val else "train"


def _rehearse(tasks: Sequence[Task], renderer: ChatRenderer, max_prompt_length: int) -> None:
    """Begin some of the tasks, and ask nothing of the model: what is wrong with the set-up shows now."""
    some = tasks[:: max(1, len(tasks) // REHEARSED)]
    limits = Limits(max_new_tokens=1, max_context=max_prompt_length + 1, step_timeout=60.0)
    with start_blocking_portal() as portal:  # a loop of its own: this process may have another one
        try:
            portal.call(run_episodes, some, _NoEngine(), renderer, limits)
        except ContextTooSmall as error:
            raise ValueError(
                f"data.max_prompt_length={max_prompt_length} is too small: {error} Set data.max_prompt_length to "
                f"{error.prompt_length} or more."
            ) from None


class _NoEngine(Engine):
    async def generate(self, prompt_ids: Sequence[int], max_new_tokens: int, *, episode: int = 0) -> Response:
        return Response([], None, "abort")


def _renderer(tokenizer: Any, data_config: Any) -> ChatRenderer:
    template_kwargs = OmegaConf.to_container(OmegaConf.create(data_config.get("apply_chat_template_kwargs") or {}))
    system, tool_role = data_config.get("system"), data_config.get("tool_role", False)
    return _cached_renderer(tokenizer, system, tool_role, json.dumps(template_kwargs, sort_keys=True))


@functools.lru_cache(maxsize=8)
def _cached_renderer(tokenizer: Any, system: str | None, tool_role: bool, template_kwargs: str) -> ChatRenderer:
    return ChatRenderer(tokenizer, system, tool_role, **json.loads(template_kwargs))


class DenseOutput(AgentLoopOutput):
    """verl's output with a reward a token: ``as_dict`` is the only place where ``rm_scores`` is made."""

    token_rewards: list[float]

    def as_dict(self) -> dict[str, Any]:
        """Return the fields that verl stores."""
        fields = super().as_dict()
        fields["rm_scores"] = torch.tensor(fields.pop("token_rewards"), dtype=torch.float32)
        return fields


@register("gem")
class GemAgentLoop(AgentLoopBase):
    """verl's agent loop: plays the task of a row.

    Options, beside what verl passes (in the YAML file of ``agent_loop_config_path``):

    Args:
        mode: ``concat``, one sample an episode; or ``turn``, one sample a turn.
        max_turns: turns an episode; None for as many as the environment allows.
        max_new_tokens: tokens a turn; None for ``data.max_response_length``.
        step_timeout: seconds that a step of a blocking environment may take.
        episodes: a folder for the episodes as JSON lines; :func:`gem.rollout.read_episodes` reads them.
        make_env: builds a task's environment; wrappers go in here. In YAML:
            ``{_target_: hydra.utils.get_method, path: my_module.make_env}``.

    A system message is ``+data.system=...``, and arguments of the chat template are
    ``+data.apply_chat_template_kwargs...``. With ``+data.tool_role=True`` a tool's observation is a message of the role
    ``tool``, see :class:`gem.rollout.ChatRenderer`.

    Raises:
        TypeError: there is no such option.
        ValueError: an option has no such value.
    """

    def __init__(
        self,
        *,
        mode: str = "concat",
        max_turns: int | None = None,
        max_new_tokens: int | None = None,
        step_timeout: float | None = 60.0,
        episodes: str | None = None,
        make_env: Callable[[Task], Env] = Task.make,
        name: str = "gem",
        tools: Any = None,
        **of_verl: Any,
    ) -> None:
        unknown = sorted(set(of_verl) - set(inspect.signature(AgentLoopBase.__init__).parameters))
        if unknown:
            options = "mode, max_turns, max_new_tokens, step_timeout, episodes, make_env"
            raise TypeError(f"GemAgentLoop has no option {', '.join(unknown)}: there are {options}")
        if mode not in ("concat", "turn"):
            raise ValueError(f"mode is 'concat' or 'turn', got {mode!r}")
        super().__init__(**of_verl)
        self.mode = mode
        self.episodes = episodes
        rollout = self.rollout_config
        if max_new_tokens is not None and max_new_tokens > rollout.response_length:
            raise ValueError(
                f"max_new_tokens={max_new_tokens} is more than data.max_response_length={rollout.response_length}"
            )
        limits = Limits(
            max_turns,
            max_new_tokens or rollout.response_length,
            max_context=rollout.get("max_model_len") or rollout.prompt_length + rollout.response_length,
            max_completion=rollout.response_length if mode == "concat" else None,
            step_timeout=step_timeout,
        )
        self.player = shared_player(_renderer(self.tokenizer, self.data_config), limits, make_env)

    async def run(self, sampling_params: dict[str, Any], **row: Any) -> AgentLoopOutput | list[AgentLoopOutput]:
        """Play the task of a row.

        Returns:
            One output, or in the mode ``turn`` one a turn; an empty list if the engine gave not one token.

        Raises:
            ValueError: the row has no task; or the set-up is wrong, see :func:`gem.rollout.run_episodes`.
        """
        if "task" not in row:
            raise ValueError("the row has no task: set data.custom_cls.path=pkg://gem_verl, .name=GemTaskDataset")
        engine = _Server(self.server_manager, sampling_params, _end_ids(self.tokenizer, self.player.renderer))
        episode = await self.player.play(Task.from_json(row["task"]), engine)
        if self.episodes is not None:
            append_episode(self.episodes, episode, row.get("global_steps"))
        if not episode.turns:
            return []
        if self.mode == "concat":
            if not episode.append_only:
                raise ValueError(
                    f"a wrapper rewrites the history of {episode.task.env_id}, so an episode is not one sequence: set "
                    "mode: turn in the agent loop's configuration"
                )
            whole = episode.as_sequence()
            return _as_output(
                episode,
                engine,
                engine.outputs[len(episode.turns) - 1],
                prompt_ids=whole.prompt_ids.tolist(),
                response_ids=whole.completion_ids.tolist(),
                response_mask=whole.mask.tolist(),
                response_logprobs=None if whole.logprobs is None else whole.logprobs.tolist(),
                token_rewards=whole.rewards.tolist(),
            )
        returns = self._returns(episode)
        return [
            _as_output(
                episode,
                engine,
                output,
                prompt_ids=turn.prompt_ids,
                response_ids=turn.response_ids,
                response_mask=[1] * len(turn.response_ids),
                response_logprobs=turn.logprobs,
                token_rewards=[0.0] * (len(turn.response_ids) - 1) + [turn_return],
            )
            for turn, output, turn_return in zip(episode.turns, engine.outputs, returns, strict=False)
        ]

    def _returns(self, episode: Episode) -> list[float]:
        """Return what each turn's sample is worth, in the mode ``turn``."""
        if self.config.algorithm.adv_estimator == "grpo" or episode.task.split != "train":
            return [episode.total_reward] * len(episode.turns)  # verl takes one sample of them for the whole session
        return discounted_returns(episode.rewards, self.config.algorithm.gamma).tolist()


def _as_output(episode: Episode, engine: _Server, output: TokenOutput, **tokens: Any) -> AgentLoopOutput:
    metrics = episode.metrics()
    metrics["acc"] = metrics.pop("success")  # what verl takes for the core metric
    return DenseOutput(
        **tokens,
        reward_score=sum(tokens["token_rewards"]),  # so that verl asks no reward function
        routed_experts=output.routed_experts,
        num_turns=2 * len(episode.turns),  # messages, as verl counts them
        metrics=AgentLoopMetrics(generate_sequences=engine.seconds),
        extra_fields={**output.extra_fields, **engine.versions(), "reward_extra_info": metrics},
    )


def _end_ids(tokenizer: Any, renderer: ChatRenderer) -> set[int]:
    return {tokenizer.eos_token_id, *renderer.end_ids.values()} - {None}


class _Server(Engine):
    """verl's inference servers, as they are asked by one episode."""

    def __init__(self, client: Any, sampling_params: dict[str, Any], end_ids: set[int]) -> None:
        self.client = client
        self.sampling_params = sampling_params
        self.end_ids = end_ids
        self.request_id = uuid4().hex  # one an episode: all its turns go to the server that has its prefix
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
        # The server's own word does not tell: vLLM's "stop" and "length" are both "completed" by then.
        stopped = ids[-1] in self.end_ids or len(ids) < max_new_tokens
        return Response(ids, logprobs, "stop" if stopped else "length")

    def versions(self) -> dict[str, Any]:
        """Return which versions of the weights the episode was sampled with."""
        first = [output.extra_fields.get("min_global_steps") for output in self.outputs]
        last = [output.extra_fields.get("max_global_steps") for output in self.outputs]
        known = None not in first and None not in last
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
        config: ``algorithm``; ``gamma`` discounts a turn.

    Returns:
        Advantages and returns, each (B, T): every sampled token has those of its turn.
    """
    mask = response_mask.bool().cpu()
    following = torch.cat([mask[:, 1:], torch.zeros_like(mask[:, :1])], dim=1)
    turn_ends = [torch.nonzero(row).flatten().tolist() for row in mask & ~following]
    before = torch.nn.functional.pad(token_level_rewards.detach().cpu().double().cumsum(dim=1), (1, 0))
    until = [before[row, [0, *[end + 1 for end in ends]]] for row, ends in enumerate(turn_ends)]
    rewards = [row.diff().tolist() for row in until]
    gamma = float(config.gamma)

    def spread(of_turns: Sequence[Any]) -> torch.Tensor:
        of_tokens = spread_over_tokens(of_turns, turn_ends, response_mask.shape[1])
        return torch.tensor(of_tokens).to(token_level_rewards) * response_mask

    return spread(rebn(rewards, gamma)), spread([discounted_returns(row, gamma) for row in rewards])


class _EpisodeMetrics:
    """Adds the episodes' metrics to those of a training step."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        trainer = getattr(kwargs.get("refill_fn"), "__self__", None)
        if trainer is not None and (trainer.config.algorithm.get("filter_groups") or {}).get("enable", False):
            raise ValueError(
                "verl leaves algorithm.filter_groups to a custom sampler, and GemReplayBuffer does not filter: use one "
                "or the other"
            )
        interval = (kwargs.get("sampler_kwargs") or {}).get("poll_interval")
        super().__init__(*args, **kwargs, **({} if interval is None else {"poll_interval": interval}))

    def sample(self, global_steps: int, partition_id: str, batch_size: int) -> tuple[Any, dict[str, Any]]:
        batch, metrics = super().sample(global_steps, partition_id, batch_size)  # type: ignore[misc]
        if partition_id == "train":
            metrics = {**metrics, **_batch_metrics(batch)}
        return batch, metrics


class GemReplayBuffer(_EpisodeMetrics, ReplayBuffer):
    """verl's ``trainer.v1.sampler.custom_sampler`` for the synchronous trainer: logs ``gem/...``.

    ``+trainer.v1.sampler.sampler_kwargs.poll_interval=0.1`` makes it look for finished episodes more often than every
    two seconds.
    """


class GemReplayBufferAsync(_EpisodeMetrics, ReplayBufferAsync):
    """The same for verl's asynchronous trainers."""


def _batch_metrics(batch: Any) -> dict[str, float]:
    """Return the means over the batch's episodes, of whose samples the last one speaks."""
    last: dict[str, tuple[int, str]] = {}
    for key in batch.keys:
        session, _, index = key.rpartition("_")
        last[session] = max(last.get(session, (-1, "")), (int(index), key))
    keys = [key for _, key in last.values()]
    stored = transfer_queue.kv_batch_get(keys=keys, partition_id=batch.partition_id, select_fields=["extra_fields"])
    rows = [fields["reward_extra_info"] for fields in stored["extra_fields"]]
    rows = [row for row in rows if "environment_errors" in row]  # a batch may have rows of other agent loops
    names = {"success" if name == "acc" else name: name for name in (rows[0] if rows else {})}
    return {f"gem/{name}": sum(row[key] for row in rows) / len(rows) for name, key in names.items()}
