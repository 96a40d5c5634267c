r"""GEM: a gym for language-model agents.

An environment speaks text, with the Gym interface:

>>> import gem
>>> env = gem.make("game:GuessTheNumber-v0-easy")
>>> observation, info = env.reset(seed=7)
>>> observation, reward, terminated, truncated, info = env.step("I guess \\\\boxed{5}")
>>> reward, terminated, truncated
(0.0, False, False)

Importing this package imports no trainer, no torch and no transformers, and configures nothing.
"""

from gem.core import Env, EnvWrapper, ResetNeeded
from gem.envs.registration import EnvSpec, make, make_vec, print_envs, register
from gem.tasks import Task

__version__ = "0.1.0"

__all__ = [
    "Env",
    "EnvSpec",
    "EnvWrapper",
    "ResetNeeded",
    "Task",
    "make",
    "make_vec",
    "print_envs",
    "register",
]
