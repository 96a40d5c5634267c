r"""GEM for RL2: an environment module for both of its interfaces, and ReBN.

.. code-block:: bash

    gem tasks env=game:GuessTheNumber-v1-easy,seeds=0:1024 --format rl2 --out train.jsonl
    torchrun --nproc_per_node=1 -m RL2.trainer.ppo rollout.env_path="$(python -m gem_rl2)" \
        train_data.path=train.jsonl train_data.prompts_per_rollout=8 train_data.responses_per_prompt=8 \
        rollout.max_turns=8 adv.estimator=rebn +rollout.gem.max_context=4096 ...

Options are keys under ``rollout.gem`` (at RL2's head, under ``rollout.train.gem`` and ``rollout.test.gem``); see
:class:`Options`. For wrappers, name a file of your own as ``env_path``:

.. code-block:: python

    from gem_rl2 import GemEnv

    env = GemEnv(make_env=my_env_with_wrappers)
    reset, step, generate = env.reset, env.step, env.generate

The other parts, in the order in which to read them: ``gem_rl2_options`` (configuration, rows), ``gem_rl2_turns``,
``gem_rl2_release`` and ``gem_rl2_head`` (one for each interface of RL2), ``gem_rl2_batches`` (advantages).

How GEM maps to RL2:

* A row is a task (``gem tasks --format rl2``). ``responses_per_prompt`` episodes of a row begin from one seed.
* **rl-square 0.0.2** calls ``reset`` and ``step``, which return text, and puts that text into tokens. The module
  replaces this one step: RL2 gets the runner's own ids. It also reads RL2's requests to the engine and their answers,
  since text does not show which tokens were sampled, or whether a turn was cut.
* **RL2's head** calls ``generate`` for whole episodes, and takes ids.
* A turn that extends its prompt extends RL2's sequence; a history that a wrapper rewrites begins a new sequence of the
  same trajectory. A turn's reward is on its last sampled token.
* ``adv.estimator=rebn`` is ReBN: a return for each turn, normalised over all turns of the batch; ``adv.gamma`` is its
  discount. RL2's other estimators compute what they did, over the valid episodes.
* With ``on_error=mask``, an invalid episode's sequences become rows of padding (:func:`leave_out`): no token of theirs
  is learned from, counted, or part of a baseline.
* ``scores`` is success; metrics are ``gem/...``, see :meth:`gem.rollout.Episode.metrics`.

Written for rl-square 0.0.2; the other interface for the repository's head as it was in 2026.
"""

from __future__ import annotations

import atexit
import multiprocessing
import sys
from collections.abc import Callable
from functools import lru_cache, wraps
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from gem.core import Env
from gem.tasks import Task
from gem_rl2_batches import leave_out, over_valid_episodes, over_valid_tokens, rebn_advantages, with_rebn
from gem_rl2_head import HeadEnv
from gem_rl2_options import Options
from gem_rl2_release import ReleaseEnv, batched, logged, observed, recorded, with_ids

__all__ = ["GemEnv", "Options", "leave_out", "rebn_advantages"]

TESTED = "0.0.2"
"""The release of rl-square that the tests run with."""


class GemEnv(ReleaseEnv, HeadEnv):
    """What ``env_path`` names: the functions of both interfaces.

    Args:
        make_env: builds a task's environment; wrappers go in here.

    Raises:
        ImportError: there is no RL2, or one with neither interface, or a release that was never tested.
    """

    def __init__(self, make_env: Callable[[Task], Env] = Task.make) -> None:
        super().__init__(make_env)
        _attach()


def _attach() -> None:
    """Put the module between rl-square 0.0.2 and its engine, and give RL2 one more advantage estimator; once a process.

    Raises:
        ImportError: there is no RL2, or one with neither interface, or a release that was never tested.
    """
    try:
        import RL2.datasets
        from RL2.workers import rollout
    except ImportError as error:
        raise ImportError(f"gem_rl2 needs RL2 and what it needs ({error}): install gem-adapters[rl2]") from error

    _check_version()
    if hasattr(rollout, "async_generate"):
        from RL2.utils import algorithms

        _wrap(rollout, "async_generate", observed)
        _wrap(rollout, "initialize_state_dict", with_ids)
        _wrap(rollout, "gather_and_log", logged)
        _wrap(rollout.Rollout, "rollout", recorded)
        _wrap(rollout.Rollout, "__call__", batched)
        _wrap(algorithms, "compute_reinforce_adv", over_valid_episodes)
        _wrap(algorithms, "compute_gae", over_valid_tokens)
        atexit.register(_end_servers)
    elif not hasattr(RL2.datasets, "add_llm_response"):
        raise ImportError(
            "this RL2 has neither the interface of rl-square 0.0.2 nor that of the repository's head: "
            "pip install rl-square==0.0.2"
        )
    for name in ("RL2.trainer.ppo", "__main__"):  # `python -m RL2.trainer.ppo` is the latter
        if hasattr(sys.modules.get(name), "compute_advantages"):
            _wrap(sys.modules[name], "compute_advantages", with_rebn)


def _check_version() -> None:
    try:
        installed = version("rl-square")
    except PackageNotFoundError:
        return  # a checkout of the repository, which is known by its interface
    if installed != TESTED:
        raise ImportError(
            f"gem_rl2 works with rl-square {TESTED}, and rl-square {installed} is installed: "
            f"pip install rl-square=={TESTED}"
        )


def _wrap(owner: Any, name: str, wrapper: Callable[[Callable[..., Any]], Callable[..., Any]]) -> None:
    function = getattr(owner, name)
    if not hasattr(function, "of_gem"):
        wrapped = wraps(function)(wrapper(function))
        wrapped.of_gem = True  # type: ignore[attr-defined]
        setattr(owner, name, wrapped)


def _end_servers() -> None:
    """End RL2's servers with the trainer's process: RL2 leaves them running, and Python would wait for them."""
    for process in multiprocessing.active_children():
        process.kill()


@lru_cache(maxsize=1)
def _default() -> GemEnv:
    return GemEnv()


def __getattr__(name: str) -> Any:
    """Give the functions that RL2 wants. RL2 is not imported before: ``python -m gem_rl2`` prints a path without it."""
    if name in ("reset", "step", "generate"):
        return getattr(_default(), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


if __name__ == "__main__":
    print(Path(__file__).resolve())
elif __name__ != "gem_rl2":  # RL2 runs this file under a name of its own; what it remembers is to be in one place
    from gem_rl2 import generate, reset, step  # noqa: F401
