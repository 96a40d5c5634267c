r"""GEM for Oat: actors that run the rollouts of tasks, and what their learners need.

.. code-block:: python

    import launchpad as lp
    from oat.algorithms.ppo_multiturn import PPOMultiTurnLearner
    from oat.args import default_args_validation
    from oat.interface import get_program

    from gem_oat import GemActor, GemArgs, GemLearnerMixin


    class Learner(GemLearnerMixin, PPOMultiTurnLearner):
        pass


    args = GemArgs(
        pretrain="Qwen/Qwen3-0.6B",
        tasks="env=game:GuessTheNumber-v0-hard,seeds=0:100000",
        whiten_adv=True,  # ReBN
        critic_type="drgrpo",
        ...
    )
    program, resources = get_program(default_args_validation(args), learner_cls=Learner, actor_cls=GemActor)
    lp.launch(program, launch_type=args.launch_type, local_resources=resources, terminal="current_terminal")

How GEM maps to Oat:

* Oat learns from **turns**: :class:`GemActor` runs episodes until there are ``rollout_batch_size_per_device`` turns.
  Each is a ``Transition`` with the prompt that the model saw, the ids that it sampled, and **its own reward**. Oat
  makes returns of them (``gamma`` per turn); ``whiten_adv`` is ReBN; ``critic_type="ppo"`` has a critic of turns.
* Both histories: append-only, and those that wrappers rewrite, which are Oat's nature.
* :class:`GemGroupActor` is for GRPO and Dr. GRPO in Oat's stock ``PPOLearner``: groups of ``num_samples`` episodes of
  one turn that begin from one seed.
* **Failures.** An episode that the environment or the engine ended is left out. In a group, which Oat needs whole, its
  row has the weight 0 and does not count in the group's mean and deviation (:class:`GemLearnerMixin`).
* **Stop tokens.** The tokens with which the chat template ends an answer are stop tokens of all requests.
* Tasks are shared out among the actors. Tasks of ``eval_tasks`` are of another split; ``eval/score`` is the share of
  them that was solved.
* **Resuming** (Oat's ``resume_dir``) goes on with the step and the tasks at which the checkpoint was written.
* Metrics are ``gem/...``, see :func:`gem.rollout.mean_metrics`; of evaluations ``eval/gem/...``.

Written for oat-llm 0.2.4. The parts are in ``gem_oat_args``, ``gem_oat_actors``, ``gem_oat_groups`` and
``gem_oat_learner``.
"""

from __future__ import annotations

import logging
from importlib.metadata import PackageNotFoundError, version

logger = logging.getLogger("gem.oat")

TESTED = "0.2.4"
"""The release of oat-llm that the tests run with."""

try:
    installed = version("oat-llm")
except PackageNotFoundError as error:
    raise ImportError(f"gem_oat needs Oat ({error}): install gem-adapters[oat]") from error
if installed.split(".")[:2] != TESTED.split(".")[:2]:
    raise ImportError(f"gem_oat works with oat-llm 0.2.x, and {installed} is installed: install gem-adapters[oat]")
if installed != TESTED:
    logger.warning("gem_oat was tested with oat-llm %s, and %s is installed", TESTED, installed)

try:
    from gem_oat_actors import GemActor
    from gem_oat_args import GemArgs
    from gem_oat_groups import GemGroupActor
    from gem_oat_learner import GemLearnerMixin
except ImportError as error:
    raise ImportError(f"gem_oat needs Oat and what it needs ({error}): install gem-adapters[oat]") from error

__all__ = ["GemActor", "GemArgs", "GemGroupActor", "GemLearnerMixin"]
