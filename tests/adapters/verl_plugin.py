"""Loaded into verl's processes by a test: an environment that misbehaves, and what ReBN is computed from."""

import os
from pathlib import Path

import torch
from verl.trainer.ppo.core_algos import ADV_ESTIMATOR_REGISTRY

import gem_verl
from gem.testing.fault_injection import fault_task

fault_task()  # registers the environment


def recorded(token_level_rewards, response_mask, config=None, **kwargs):
    advantages, returns = gem_verl.compute_rebn_advantage(token_level_rewards, response_mask, config, **kwargs)
    folder = Path(os.environ["GEM_RECORDS"])
    record = {"mask": response_mask, "advantages": advantages, "gamma": config.gamma}
    torch.save(record, folder / f"{len(list(folder.iterdir())) + 1}.pt")
    return advantages, returns


ADV_ESTIMATOR_REGISTRY["gem_rebn"] = recorded
