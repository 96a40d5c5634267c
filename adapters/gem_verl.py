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

The other parts are in ``gem_verl_tasks`` (data set, options), ``gem_verl_rebn`` and ``gem_verl_buffer``. Works with
verl 0.9.x and its V1 trainer (``trainer.use_v1``, the default).
"""

from __future__ import annotations

import functools
import inspect
import time
from collections.abc import Sequence
from typing import Any
from uuid import uuid4

try:
    import torch
    from verl import __version__ as verl_version
    from verl.experimental.agent_loop.agent_loop import AgentLoopBase, AgentLoopMetrics, AgentLoopOutput, register
    from verl.utils.import_utils import load_extern_object
    from verl.workers.rollout.replica import TokenOutput
except ImportError as error:
    raise ImportError(f"gem_verl needs verl and what it needs ({error}): install gem-adapters[verl]") from error

if verl_version.split(".")[:2] != ["0", "9"]:
    raise ImportError(
        f"gem_verl works with verl 0.9.x, and verl {verl_version} is installed: install gem-adapters[verl]"
    )

from gem.rollout import ChatRenderer, Engine, Episode, Response, append_episode, discounted_returns, shared_runner
from gem.rollout.metrics import FAILURES
from gem.tasks import Task
from gem_verl_buffer import NO_WEIGHT, GemReplayBuffer, GemReplayBufferAsync, GemSampling
from gem_verl_rebn import compute_rebn_advantage
from gem_verl_tasks import GemTaskDataset, LoopOptions, renderer_of

__all__ = [
    "GemAgentLoop",
    "GemReplayBuffer",
    "GemReplayBufferAsync",
    "GemTaskDataset",
    "LoopOptions",
    "compute_rebn_advantage",
]


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
        self.runner = shared_runner(renderer_of(self.tokenizer, self.data_config), limits, self.options.make_env)

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
    return bool(path and name) and issubclass(load_extern_object(path, name), GemSampling)


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
