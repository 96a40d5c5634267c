"""The interface of RL2's head: ``generate``, which runs a whole episode."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

from gem.core import Env
from gem.rollout import Response, SteppedEpisode, shared_runner
from gem.tasks import Task
from gem_rl2_options import limits_of, options_of, record_episode, renderer_of, task_of_row
from gem_rl2_turns import bridge_after_turn, next_state, response_of, reward_and_end, stopping_params, text_of


class HeadEnv:
    """The function that RL2's head calls.

    Args:
        make_env: builds a task's environment.

    Attributes:
        running: episodes that :meth:`generate` has begun and not ended, by the number that their sample has.
    """

    def __init__(self, make_env: Callable[[Task], Env]) -> None:
        self.make_env = make_env
        self.running: dict[int, SteppedEpisode] = {}
        self._numbers = itertools.count()

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
        options = options_of(config)
        renderer = renderer_of(tokenizer, options)
        params = stopping_params(dict(config.sampling_params), renderer)
        if sample.status is Sample.Status.RUNNING:
            runner = shared_runner(renderer, limits_of(options, params), self.make_env)
            stepped = SteppedEpisode(runner, task_of_row(sample.sample))
            sample.gem_episode = next(self._numbers)  # RL2 writes samples as JSON: a number is all that they can hold
            self.running[sample.gem_episode] = stepped
        try:
            stepped = self.running[sample.gem_episode]
            if sample.status is Sample.Status.RUNNING:
                prompt_ids = list((await stepped.start()).prompt_ids)
                sample.state_text = text_of(tokenizer, prompt_ids)
                sample.state_dict = initialize_state_dict(tokenizer, sample.state_text)
                put(sample.state_dict, 0, prompt_ids)
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
                response = response_of(answer, renderer)
                if response.token_ids or response.finish_reason == "abort":
                    add_llm_response(sample, answer)
                    if sample.status is Sample.Status.ABORTED:
                        return
                    ids, logprobs = own["states"][first:], own["logps"][first:]
                    response = Response(ids, logprobs, response.finish_reason)
                following = await stepped.answer(response)
                made = reward_and_end(stepped.episode, response, following)
                if following is not None:
                    bridge = bridge_after_turn(stepped.episode, following)
                    text = text_of(tokenizer, following.prompt_ids if bridge is None else bridge)
                    before = sample.state_text + sample.action_text
                    made["next_state"] = next_state(before, text, extends=bridge is not None)
                del made["score"]
                add_env_response(tokenizer, sample, made)
                if following is not None:
                    start = 0 if bridge is None else first + len(response.token_ids)
                    put(sample.state_dict, start, following.prompt_ids)
            if options.on_error == "mask" and not stepped.episode.valid:
                for state_dict in sample.state_dicts:
                    for name in ("action_mask", "rewards"):
                        state_dict[name] = [0] * len(state_dict["states"])
            record_episode(options, stepped.episode)
        finally:
            if sample.status is not Sample.Status.ABORTED:
                await self.running.pop(sample.gem_episode).close()


def put(state_dict: dict[str, list[Any]], start: int, ids: Sequence[int]) -> None:
    """Let RL2's sequence be these ids, of which those from ``start`` on were not sampled."""
    for name, values in state_dict.items():
        values[start:] = list(ids[start:]) if name == "states" else [0] * (len(ids) - start)
