"""What RL2 computes of a batch of which some episodes were left out; and ReBN."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

from gem.rollout import check_gamma, group_advantages, rebn_of_mask


def leave_out(tensor_dict: dict[str, Any]) -> None:
    """Make a sequence one of padding: no token is learned from, it has no end, and so RL2 takes it as one token long.

    Args:
        tensor_dict: a sequence as RL2 has it, (T,) each, or several, (N, T) each; changed in place.
    """
    for name in ("action_mask", "eos_mask", "rewards"):
        tensor_dict[name].zero_()


def valid_sequences(tensor_dict: dict[str, Any]) -> Any:
    """Return which sequences were not left out, (N,)."""
    return tensor_dict["eos_mask"].any(-1)


def take_back_filler(tensor_dict: dict[str, Any]) -> None:
    """End a sequence on the last sampled token, if there is one, before that which stood in for an empty answer."""
    for name in ("action_mask", "eos_mask", "rewards"):
        tensor_dict[name][-1] = 0
    sampled = tensor_dict["action_mask"].nonzero()
    if len(sampled):
        tensor_dict["eos_mask"][sampled[-1]] = 1


def filtered(tensor_dict: dict[str, Any], cu_seqs: Any, size: int) -> tuple[dict[str, Any], Any, float]:
    """Do what RL2's ``dynamic_filtering`` does, over the valid episodes: drop groups in which all got the same.

    Where no group is left, all of them stay, and are left out of what is learned.

    Returns:
        The batch, its ``cu_seqs``, and the share of groups that were dropped.
    """
    import torch

    bounds, valid = cu_seqs.tolist(), valid_sequences(tensor_dict)
    dropped = [
        _nothing_to_compare(
            torch.stack(
                [
                    tensor_dict["rewards"][first:end].sum()
                    for first, end in itertools.pairwise(group)
                    if valid[first:end].any()
                ]
                or [torch.zeros(())]
            )
        )
        for group in (bounds[i : i + size + 1] for i in range(0, len(bounds) - 1, size))
    ]
    if all(dropped):
        leave_out(tensor_dict)
        return tensor_dict, cu_seqs, 1.0
    lengths = cu_seqs.diff().view(-1, size)
    kept = ~torch.tensor(dropped)
    rows = kept.repeat_interleave(lengths.sum(-1))
    cu_seqs = torch.cat([cu_seqs[:1], lengths[kept].flatten().cumsum(0)])
    return {name: values[rows] for name, values in tensor_dict.items()}, cu_seqs, sum(dropped) / len(dropped)


def fill_updates(tensor_dict: dict[str, Any], updates: int) -> None:
    """Give every update a token. RL2 divides the loss of an update by its sampled tokens, and nothing by 0 is NaN.

    Where all episodes of an update were left out, it gets one token of theirs, of which the advantage is 0.
    """
    for mask in tensor_dict["action_mask"].chunk(updates):
        if not mask.any():
            mask[0, 0] = 1


def _nothing_to_compare(values: Any) -> bool:
    """Whether values are equal but for rounding, of which a deviation must not make advantages."""
    return len(values) < 2 or not group_advantages(values.double().numpy(), len(values), scale=False).any()


def over_valid_episodes(original: Callable[..., Any]) -> Callable[..., Any]:
    """Return RL2's ``compute_reinforce_adv`` for groups, or batches, of which some episodes were left out."""
    import torch

    def compute_reinforce_adv(
        tensor_dict: dict[str, Any], responses_per_prompt: int, global_norm: bool, norm_var: bool
    ) -> dict[str, Any]:
        valid = valid_sequences(tensor_dict)
        advantages = torch.zeros_like(tensor_dict["rewards"])
        every = torch.arange(len(valid))
        for group in [every] if global_norm else every.split(responses_per_prompt):
            members = group[valid[group]]
            own = {name: tensor_dict[name][members] for name in ("rewards", "action_mask")}
            if not _nothing_to_compare(own["rewards"].sum(-1)):
                advantages[members] = original(own, len(members), global_norm, norm_var)["advantages"]
        return {"advantages": advantages}

    return compute_reinforce_adv


def over_valid_tokens(original: Callable[..., Any]) -> Callable[..., Any]:
    """Return RL2's ``compute_gae``, which also normalises, for batches of which some episodes were left out."""
    import torch

    def compute_gae(tensor_dict: dict[str, Any], gamma: float, lamda: float) -> dict[str, Any]:
        valid = valid_sequences(tensor_dict)[:, None]
        values, mask = tensor_dict["values"], tensor_dict["action_mask"] * valid
        computed = original({**tensor_dict, "action_mask": mask}, gamma, lamda)
        if _nothing_to_compare((computed["returns"] - values)[mask.bool()]):
            computed["advantages"] = torch.zeros_like(values)
        computed["returns"] = torch.where(valid, computed["returns"], values)
        return computed

    return compute_gae


def with_rebn(original: Callable[..., Any]) -> Callable[..., Any]:
    """Return RL2's ``compute_advantages`` with one more estimator."""
    from RL2.utils.logging import time_logger

    @time_logger("compute_advantages")
    def of_turns(config: Any, tensor_dict: dict[str, Any], cu_seqs: Any, step: int) -> None:
        tensor_dict["advantages"] = rebn_advantages(tensor_dict, cu_seqs, check_gamma(config.gamma))

    def compute_advantages(config: Any, tensor_dict: dict[str, Any], cu_seqs: Any, step: int) -> None:
        (of_turns if config.estimator == "rebn" else original)(config, tensor_dict, cu_seqs, step)

    return compute_advantages


def rebn_advantages(tensor_dict: dict[str, Any], cu_seqs: Any, gamma: float = 1.0) -> Any:
    """Return ReBN's advantages for what RL2 has packed; see :func:`gem.rollout.rebn`.

    Args:
        tensor_dict: ``action_mask``, ``eos_mask`` and ``rewards``, (N, T) each: N sequences, of which a trajectory has
            one or more. A turn is a run of sampled tokens.
        cu_seqs: (B + 1,): the sequences of trajectory i are those from ``cu_seqs[i]`` to ``cu_seqs[i + 1]``.
        gamma: discount per turn.

    Returns:
        (N, T), float32: each sampled token has the advantage of its turn; 0 in sequences that were left out.
    """
    import torch

    mask = tensor_dict["action_mask"] * valid_sequences(tensor_dict)[:, None]
    advantages, _ = rebn_of_mask(tensor_dict["rewards"].double().numpy(), mask.numpy(), gamma, cu_seqs.tolist())
    return torch.tensor(advantages, dtype=torch.float32)
