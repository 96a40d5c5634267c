r"""Gradients: what a trainer's own loss makes of a batch, against a sum over the sampled tokens.

While the policy has not moved since it sampled, every policy-gradient loss has the gradient

.. math:: - \sum_t w_t A_t \nabla \log \pi(\mathrm{token}_t \mid \mathrm{all\ before\ it})

over the sampled tokens of a batch. The advantages :math:`A_t` are compared on their own; the weights :math:`w_t` are
where trainers differ: one over the tokens of the batch, or of the sequence and the number of sequences, or of the
micro-batch. A harness declares them, and the trainer's gradient must be that of the sum.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

COSINE = 0.9999
"""Least cosine of the angle between the trainer's gradient and the reference, over all parameters together."""

NORM = 1e-3
"""By how much their norms may differ, relatively."""


@dataclass(frozen=True)
class WeighedSequence:
    """A sequence of a batch, with what each sampled token's log-probability is multiplied by.

    Attributes:
        ids: all tokens; length T.
        mask: 1 where a token was sampled; length T.
        factors: weight times advantage, one for each sampled token.
    """

    ids: Sequence[int]
    mask: Sequence[int]
    factors: Sequence[float]


@dataclass
class ComputedGradient:
    """The gradient that a trainer computed for one update.

    Attributes:
        gradient: by the parameter's name, a tensor of its shape.
        model: the policy as it was then: a torch module that returns ``logits``, with parameters of these names. A copy
            without what trainers wrap around ``forward``.
        sequences: of the batch, with the declared weights.
        why: how tokens are weighed, in words.
    """

    gradient: dict[str, Any]
    model: Any
    sequences: list[WeighedSequence]
    why: str


def reference_gradient(model: Any, sequences: Sequence[WeighedSequence]) -> dict[str, Any]:
    """Return the gradient of the sum above by the parameter's name, in float64; each sequence goes through alone."""
    import torch

    model = copy.deepcopy(model).double().eval()
    model.zero_grad()
    for sequence in sequences:
        ids = torch.tensor([list(sequence.ids)])
        chances = torch.log_softmax(model(input_ids=ids[:, :-1]).logits[0], -1)
        own = chances.gather(1, ids[0, 1:, None])[:, 0]
        sampled = torch.tensor(list(sequence.mask[1:]), dtype=torch.bool)
        factors = torch.tensor(list(sequence.factors), dtype=torch.float64)
        (-(own[sampled] * factors).sum()).backward()
    return gradient_of(model)


def gradient_of(model: Any) -> dict[str, Any]:
    """Return a copy of the gradient that a torch module's parameters have, by their names."""
    return {name: each.grad.clone() for name, each in model.named_parameters() if each.grad is not None}


def gradient_difference(computed: ComputedGradient) -> tuple[str, str]:
    """Compare a trainer's gradient with the reference.

    Returns:
        What is wrong, "" if nothing; and the figures.
    """
    expected = reference_gradient(computed.model, computed.sequences)
    if expected.keys() != computed.gradient.keys():
        return f"gradients of other parameters: {sorted(expected.keys() ^ computed.gradient.keys())[:3]}", ""
    both = [(expected[name], computed.gradient[name].double()) for name in expected]
    product = sum(float((a * b).sum()) for a, b in both)
    norms = [math.sqrt(sum(float((each[i] ** 2).sum()) for each in both)) for i in (0, 1)]
    if not min(norms) > 0:
        return f"a norm of {min(norms):g}", ""
    cosine, ratio = product / (norms[0] * norms[1]), norms[1] / norms[0]
    figures = f"cosine 1 - {max(0.0, 1 - cosine):.0e}, norm {ratio:.5f} times the reference's"
    return ("" if cosine >= COSINE and abs(ratio - 1) <= NORM else figures), figures
