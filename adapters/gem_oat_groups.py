"""The actor for GRPO and Dr. GRPO: groups of episodes of one turn."""

from __future__ import annotations

import asyncio
from typing import Any

from oat.algorithms.ppo import PPOActor
from oat.types import TransitionData

from gem.rollout import run_episodes
from gem.rollout.metrics import logged_metrics
from gem_oat_actors import GROUPS, Rollouts


class GemGroupActor(Rollouts, PPOActor):
    """Oat's actor for GRPO and Dr. GRPO: groups of episodes of one turn, each from one seed."""

    learner = GROUPS

    def init(self, actor_id: int, save_path: str) -> None:
        """See :class:`GemArgs`."""
        args = self.args
        if args.rollout_batch_size_per_device % args.num_samples:
            raise ValueError(
                f"rollout_batch_size_per_device={args.rollout_batch_size_per_device} is not a multiple of "
                f"num_samples={args.num_samples}"
            )
        if args.num_samples < 2 and args.critic_type != "ppo":
            raise ValueError(f"num_samples={args.num_samples}: {args.critic_type} needs groups of at least 2 episodes")
        super().init(actor_id, save_path)

    def step(self, prompts: Any = None, formatted_prompts: Any = None, references: Any = None) -> Any:
        """Run the episodes of groups, and hand over their turns, group after group."""
        self.begin_step(prompts)
        args = self.args
        groups = args.rollout_batch_size_per_device // args.num_samples
        tasks = [task for _, task in zip(range(groups), self.next_tasks(), strict=False)]
        copies = [task for task in tasks for _ in range(args.num_samples)]
        engine, limits = self.engine(self.sampling_params), self.limits(1, args.generate_max_length)
        episodes = asyncio.run(run_episodes(copies, engine, self.renderer, limits, self.make_env))
        self.record(episodes, self.step_number)
        info = logged_metrics(episodes, self.env_ids)
        rows = []
        for episode in episodes:
            learned = self.learned_from(episode)
            (turn,) = (episode if learned else self.filler([episode])).turns
            rows.append(
                TransitionData(
                    prompt=episode.task.to_json(),
                    prompt_ids=list(turn.prompt_ids),
                    response=turn.action,
                    response_ids=list(turn.response_ids),
                    response_logprobs=list(turn.logprobs or ()),
                    rewards=[0.0] * (len(turn.response_ids) - 1) + [turn.reward],
                    loss_mask=learned,
                    info=dict(info),
                )
            )
        return self.ipc_client.serialize_ipc(rows)
