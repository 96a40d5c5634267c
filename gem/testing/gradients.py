r"""Gradients: what a trainer's own loss makes of a batch, against a sum over the sampled tokens.

While the policy has not moved since it sampled, every policy-gradient loss has the gradient

.. math:: - \sum_t w_t A_t \nabla \log \pi(\mathrm{token}_t \mid \mathrm{all\ before\ it})

over the sampled tokens of a batch. The advantages :math:`A_t` are compared on their own; the weights :math:`w_t` are
where trainers differ: one over the tokens of the batch, or of the sequence and the number of sequences, or of the
micro-batch. A harness declares them, and the trainer's gradient must be that of the sum.

Once it has moved, the loss is that of PPO (arXiv:1707.06347), with the ratio :math:`r_t` of the new to the old
probability, which is clipped; and there may be a term that holds the policy near a reference:

.. math:: \sum_t w_t (- \min(r_t A_t, \mathrm{clip}(r_t) A_t) + \beta\, \mathrm{KL}_t)
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

COSINE = 0.9999
"""Least cosine of the angle between the trainer's gradient and the reference, over all parameters together."""

NORM = 1e-3
"""By how much their norms may differ, relatively."""


@dataclass(frozen=True)
class WeighedSequence:
    """A sequence of a batch, with what each sampled token weighs in the loss.

    Attributes:
        ids: all tokens; length T.
        mask: 1 where a token was sampled; length T.
        weights: one for each sampled token.
        advantages: one for each sampled token.
    """

    ids: Sequence[int]
    mask: Sequence[int]
    weights: Sequence[float]
    advantages: Sequence[float]


@dataclass(frozen=True)
class Objective:
    """What is summed over the tokens beside their weights.

    Attributes:
        old: the policy that sampled, where the present one has moved since: a module as :attr:`ComputedGradient.model`.
            None where it has not.
        clip: by how much the ratio of their probabilities may fall below 1, and exceed it.
        dual_clip: the highest ratio where the advantage is negative (arXiv:1912.09729); None for any.
        reference: the policy of the KL term.
        beta: what that term is multiplied by.
        kl: its estimator, ``"k1"``, ``"k2"`` or ``"k3"`` (http://joschu.net/blog/kl-approx.html).
        kl_times_ratio: whether the estimate is multiplied by the ratio too (arXiv:2512.02556).
    """

    old: Any = None
    clip: tuple[float, float] = (math.inf, math.inf)
    dual_clip: float | None = None
    reference: Any = None
    beta: float = 0.0
    kl: str = "k3"
    kl_times_ratio: bool = False


@dataclass
class ComputedGradient:
    """The gradient that a trainer computed for one update.

    Attributes:
        gradient: by the parameter's name, a tensor of its shape.
        model: the policy as it was then: a torch module that returns ``logits``, with parameters of these names. A copy
            without what trainers wrap around ``forward``.
        sequences: of the batch, with the declared weights.
        why: how tokens are weighed, in words.
        objective: what else there is to the loss.
    """

    gradient: dict[str, Any]
    model: Any
    sequences: list[WeighedSequence]
    why: str
    objective: Objective = field(default_factory=Objective)


def reference_gradient(
    model: Any, sequences: Sequence[WeighedSequence], objective: Objective | None = None
) -> tuple[dict[str, Any], float]:
    """Return the gradient of the sum above by the parameter's name, and the share of the tokens whose ratio is clipped.

    In float64; each sequence goes through alone.
    """
    import torch

    objective = objective or Objective()
    model, old, reference = (_as_float64(each) for each in (model, objective.old, objective.reference))
    clipped = tokens = 0
    for sequence in sequences:
        weights, advantages = (
            torch.tensor(list(each), dtype=torch.float64) for each in (sequence.weights, sequence.advantages)
        )
        now = _logprobs(model, sequence)
        ratio = (now - (now if old is None else _logprobs(old, sequence)).detach()).exp()
        bounded = ratio.clamp(1 - objective.clip[0], 1 + objective.clip[1])
        gain = torch.minimum(ratio * advantages, bounded * advantages)
        if objective.dual_clip is not None:
            gain = torch.where(advantages < 0, torch.maximum(gain, objective.dual_clip * advantages), gain)
        loss = -gain
        if reference is not None:
            divergence = _KL[objective.kl](now, _logprobs(reference, sequence).detach())
            loss = loss + objective.beta * divergence * (ratio if objective.kl_times_ratio else 1)
        (loss * weights).sum().backward()
        clipped += int(((gain - ratio * advantages).abs() > 0).sum())
        tokens += len(ratio)
    return gradient_of(model), clipped / max(1, tokens)


_KL: dict[str, Callable[[Any, Any], Any]] = {
    "k1": lambda own, other: own - other,
    "k2": lambda own, other: (own - other) ** 2 / 2,
    "k3": lambda own, other: (other - own).exp() - (other - own) - 1,
}


def _as_float64(model: Any) -> Any:
    if model is None:
        return None
    model = copy.deepcopy(model).double().eval()
    model.zero_grad()
    return model


def _logprobs(model: Any, sequence: WeighedSequence) -> Any:
    """Return the log-probability of each sampled token."""
    import torch

    ids = torch.tensor([list(sequence.ids)])
    chances = torch.log_softmax(model(input_ids=ids[:, :-1]).logits[0], -1)
    sampled = torch.tensor(list(sequence.mask[1:]), dtype=torch.bool)
    return chances.gather(1, ids[0, 1:, None])[:, 0][sampled]


def gradient_of(model: Any) -> dict[str, Any]:
    """Return a copy of the gradient that a torch module's parameters have, by their names."""
    return {name: each.grad.clone() for name, each in model.named_parameters() if each.grad is not None}


def gradient_difference(computed: ComputedGradient) -> tuple[str, str]:
    """Compare a trainer's gradient with the reference.

    Returns:
        What is wrong, "" if nothing; and the figures.
    """
    expected, clipped = reference_gradient(computed.model, computed.sequences, computed.objective)
    if expected.keys() != computed.gradient.keys():
        return f"gradients of other parameters: {sorted(expected.keys() ^ computed.gradient.keys())[:3]}", ""
    both = [(expected[name], computed.gradient[name].double()) for name in expected]
    product = sum(float((a * b).sum()) for a, b in both)
    norms = [math.sqrt(sum(float((each[i] ** 2).sum()) for each in both)) for i in (0, 1)]
    if not min(norms) > 0:
        return f"a norm of {min(norms):g}", ""
    if computed.objective.old is not None and not 0 < clipped < 1:
        return f"{clipped:.0%} of the tokens clipped: it is to be tried with some", ""
    cosine, ratio = product / (norms[0] * norms[1]), norms[1] / norms[0]
    figures = f"cosine 1 - {max(0.0, 1 - cosine):.0e}, norm {ratio:.5f} times the reference's"
    if computed.objective.old is not None:
        figures += f", {clipped:.0%} of the tokens clipped"
    return ("" if cosine >= COSINE and abs(ratio - 1) <= NORM else figures), figures
