"""Loaded into verl's processes by a test: environments that misbehave, and a record of what ReBN is computed from."""

import os
import time
from pathlib import Path

import torch
from verl.trainer.ppo.core_algos import ADV_ESTIMATOR_REGISTRY

import gem_verl
from gem.core import Env
from gem.envs.registration import register


class Hostile(Env):
    """Misbehaves in its second turn."""

    def __init__(self, how):
        super().__init__()
        self.how, self.turn = how, 0

    def reset(self, seed=None):
        super().reset(seed)
        self.turn = 0
        return "Say something.", {}

    def step(self, action):
        self.turn += 1
        if self.turn == 2 and self.how == "raises":
            raise OSError("the disk is full")
        if self.turn == 2 and self.how == "hangs":
            time.sleep(60)
        observation = "a very long story " * 60_000 if self.turn == 2 and self.how == "floods" else "Go on."
        return observation, 0.25, self.turn == 3, False, {}


register("test:Hostile-v0", Hostile)


def recorded(token_level_rewards, response_mask, config=None, **kwargs):
    advantages, returns = gem_verl.compute_rebn_advantage(token_level_rewards, response_mask, config, **kwargs)
    folder = Path(os.environ["GEM_RECORDS"])
    record = {"mask": response_mask, "advantages": advantages, "gamma": config.gamma}
    torch.save(record, folder / f"{len(list(folder.iterdir())) + 1}.pt")
    return advantages, returns


ADV_ESTIMATOR_REGISTRY["gem_rebn"] = recorded
