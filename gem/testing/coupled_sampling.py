"""Coupled sampling: equal weights sample equal tokens, in whichever trainer and batch.

A token is sampled by adding Gumbel noise to the log-probabilities and taking the highest (the Gumbel-max trick). Here
the noise comes from a counter-based generator whose key is made of a seed, the prompt, how often that prompt was asked
for before, and the token's position. The prompt stands for task, turn and all that was said before: where tasks have
different first prompts, two trainers with equal weights sample the same episodes, up to their order inside a group.
"""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Sequence
from threading import Lock
from typing import Any

import numpy as np

from gem.rollout.engine import Response

SEED = "GEM_COUPLED_SAMPLING"
"""Names an environment variable: the seed with which the CPU engines of ``ci/cpu/shared`` sample like this."""


class CoupledNoise:
    """The noise that decides tokens.

    Args:
        seed: of the run.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self._asked: Counter[tuple[int, ...]] = Counter()

    @classmethod
    def from_environment(cls) -> CoupledNoise | None:
        """Return that of the seed in the environment; None if there is none."""
        return cls(int(os.environ[SEED])) if SEED in os.environ else None

    def of(self, prompt: Sequence[int]) -> np.random.Generator:
        """Return what draws the noise of an answer to a prompt, one ``gumbel(size=vocabulary)`` for each token."""
        asked = tuple(prompt)
        key = hashlib.blake2b(repr((self.seed, asked, self._asked[asked])).encode(), digest_size=16).digest()
        self._asked[asked] += 1
        return np.random.Generator(np.random.Philox(key=np.frombuffer(key, dtype=np.uint64)))


class CoupledSampler:
    """An engine over a torch model of transformers', one prompt at a time, so that no batch changes a digit.

    Args:
        model: in float32; it is the sampler's own from now on.
        end_ids: tokens that end an answer.
        seed: of the noise.

    Attributes:
        margins: for every answer so far, by prompt and ids: by how much each token has won against the next best. Where
            two trainers part, a small one shows that it was a tie.
    """

    def __init__(self, model: Any, end_ids: Sequence[int], seed: int = 0) -> None:
        self.model, self.end_ids, self.noise = model.eval(), frozenset(end_ids), CoupledNoise(seed)
        self.margins: dict[tuple[int, ...], list[float]] = {}
        self._lock = Lock()

    def take(self, weights: dict[str, Any]) -> None:
        """Sample with these weights from now on; all parameters by their names."""
        for name, parameter in self.model.named_parameters():  # each once, however it is tied
            parameter.data.copy_(weights[name])

    def respond(self, prompt_ids: Sequence[int], max_new_tokens: int, stop_ids: Sequence[int] = ()) -> Response:
        """Sample a continuation; any thread may call.

        Args:
            prompt_ids: the prompt.
            max_new_tokens: the limit.
            stop_ids: tokens that end an answer beside ``end_ids``.
        """
        import torch

        prompt = tuple(prompt_ids.tolist() if hasattr(prompt_ids, "tolist") else prompt_ids)
        ends = self.end_ids.union(stop_ids)
        with self._lock, torch.no_grad():
            noise = self.noise.of(prompt)
            ids: list[int] = []
            logprobs: list[float] = []
            margins: list[float] = []
            given, past = list(prompt), None
            while len(ids) < max_new_tokens and not (ids and ids[-1] in ends):
                output = self.model(torch.tensor([given]), past_key_values=past, use_cache=True)
                chances = torch.log_softmax(output.logits[0, -1].double(), -1).numpy()
                scores = chances + noise.gumbel(size=len(chances))
                second, first = np.argsort(scores)[-2:]
                ids.append(int(first))
                logprobs.append(float(chances[first]))
                margins.append(float(scores[first] - scores[second]))
                given, past = [ids[-1]], output.past_key_values
            self.margins[prompt + tuple(ids)] = margins
        return Response(ids, logprobs, "stop" if ids[-1] in ends else "length")
