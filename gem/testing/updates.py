"""Updates: what a trainer's optimiser makes of its gradients, against AdamW as it is declared."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

OF_PARAMETERS = 1e-6
"""By how much the parameters may differ after the updates: the difference's norm over theirs."""

OF_UPDATE = 1e-3
"""The same over the norm of all that the updates have changed, which in float32 cannot be known as well."""


@dataclass(frozen=True)
class AdamW:
    """AdamW (arXiv:1711.05101) with gradients clipped by their norm.

    Attributes:
        lr: learning rate of every update.
        betas: of the two moving averages.
        eps: added to the root of the second.
        weight_decay: times ``lr`` is what parameters lose in an update.
        max_norm: what the gradient's norm is brought down to.
        not_decayed: parts of the names of parameters that do not decay.
    """

    lr: float
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 0.0
    max_norm: float = 1.0
    not_decayed: tuple[str, ...] = ()


@dataclass
class ComputedUpdates:
    """The updates that a trainer made, one after the other.

    Attributes:
        updates: for each the gradient, by the parameter's name, and the policy before it: a torch module with
            parameters of these names. Of the last only the policy is looked at.
        optimizer: what is declared.
    """

    updates: Sequence[tuple[dict[str, Any], Any]]
    optimizer: AdamW


def updated(parameters: dict[str, Any], gradients: Sequence[dict[str, Any]], optimizer: AdamW) -> dict[str, Any]:
    """Return parameters after an update with each of the gradients, in float64.

    Args:
        parameters: torch tensors by their names.
        gradients: the same for every update.
        optimizer: how to update.
    """
    import torch

    found = {name: each.detach().double().clone() for name, each in parameters.items()}
    first, second = ({name: torch.zeros_like(each) for name, each in found.items()} for _ in "12")
    beta1, beta2 = optimizer.betas
    for step, gradient in enumerate(gradients, 1):
        norm = math.sqrt(sum(float((each.double() ** 2).sum()) for each in gradient.values()))
        scale = min(1.0, optimizer.max_norm / norm)
        for name, each in gradient.items():
            own = each.double() * scale
            first[name] = beta1 * first[name] + (1 - beta1) * own
            second[name] = beta2 * second[name] + (1 - beta2) * own**2
            if not any(part in name for part in optimizer.not_decayed):
                found[name] *= 1 - optimizer.lr * optimizer.weight_decay
            root = (second[name] / (1 - beta2**step)).sqrt() + optimizer.eps
            found[name] -= optimizer.lr / (1 - beta1**step) * first[name] / root
    return found


def update_difference(computed: ComputedUpdates) -> tuple[str, str]:
    """Compare a trainer's parameters after all updates but the last with those of the declared optimiser.

    Returns:
        What is wrong, "" if nothing; and the figures.
    """
    before, after = ({name: each.detach() for name, each in computed.updates[i][1].named_parameters()} for i in (0, -1))
    expected = updated(before, [gradient for gradient, _ in computed.updates[:-1]], computed.optimizer)
    if after.keys() != expected.keys():
        return f"other parameters: {sorted(after.keys() ^ expected.keys())[:3]}", ""

    def norm(one: dict[str, Any], other: dict[str, Any] | None = None) -> float:
        less = {name: 0.0 if other is None else other[name].double() for name in one}
        return math.sqrt(sum(float(((each.double() - less[name]) ** 2).sum()) for name, each in one.items()))

    difference, moved = norm(after, expected), norm(expected, before)
    of_parameters, of_update = difference / norm(expected), difference / moved if moved else math.inf
    figures = (
        f"differs by {of_parameters:.0e} of the parameters, {of_update:.0e} of {len(computed.updates) - 1} updates"
    )
    return ("" if of_parameters <= OF_PARAMETERS and of_update <= OF_UPDATE else figures), figures
