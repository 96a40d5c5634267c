"""What the conformance suite asks of a trainer, and what a harness declares of it."""

from __future__ import annotations

import abc
import atexit
import re
import shutil
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from gem.rollout.episode import Episode
from gem.testing.gradients import ComputedGradient
from gem.testing.records import Record
from gem.testing.scenarios import Scenario, ScriptedPolicy
from gem.testing.updates import ComputedUpdates


@dataclass(frozen=True)
class Difference:
    """What an adapter says of its trainer: how its records differ from the episodes.

    Attributes:
        why: in words, for the table.
        change: from the episodes to the records that are expected instead. None if the trainer refuses.
        refuses: the error that the trainer raises instead of learning.
        match: a regular expression that is found in the error's message.
        only: names of the scenarios; None for all.
    """

    why: str
    change: Callable[[list[Episode]], list[Record]] | None = None
    refuses: type[Exception] | None = None
    match: str = ""
    only: frozenset[str] | None = None


@dataclass
class ComputedAdvantages:
    """The advantages that a trainer computed in a scenario.

    Attributes:
        advantages: for each sequence its ids, and one advantage per sampled token.
        expected: a reference: from all episodes, group after group, to an advantage for each turn. What it gives for
            an episode that is not valid is not looked at.
        tolerance: how exact the trainer's own numbers are.
        why: what the reference's parameters are, for the table.
    """

    advantages: list[tuple[list[int], list[float]]]
    expected: Callable[[list[Episode]], Sequence[Sequence[float] | np.ndarray]]
    why: str
    tolerance: float = 1e-5


class Harness(abc.ABC):
    """Runs scenarios through a trainer's own code.

    Attributes:
        name: of the trainer.
        version: of the trainer.
        differences: what its records do not have; the first that names a scenario counts.
        algorithms: names of the algorithms that :meth:`compute_advantages` knows.
        losses: names of the losses that :meth:`compute_gradient` knows.
        optimizers: names of the settings that :meth:`compute_updates` knows.
    """

    name: ClassVar[str]
    version: str = ""
    differences: ClassVar[Sequence[Difference]] = ()
    algorithms: ClassVar[Sequence[str]] = ()
    losses: ClassVar[Sequence[str]] = ()
    optimizers: ClassVar[Sequence[str]] = ()

    @abc.abstractmethod
    def run(self, scenario: Scenario, policy: ScriptedPolicy) -> list[Record]:
        """Run a scenario, with ``policy.respond`` as the engine, and read back what the trainer would learn from.

        The order of the records does not matter.
        """

    def compute_advantages(self, scenario: Scenario, policy: ScriptedPolicy, algorithm: str) -> ComputedAdvantages:
        """Run a scenario, and read back the advantages that the trainer computed."""
        raise NotImplementedError

    def compute_gradient(self, scenario: Scenario, policy: ScriptedPolicy, loss: str) -> ComputedGradient:
        """Run a scenario and one update, and read back the gradient that the trainer computed."""
        raise NotImplementedError

    def compute_updates(self, scenario: Scenario, policy: ScriptedPolicy, optimizer: str) -> ComputedUpdates:
        """Run a scenario and several updates, and read back gradients and parameters."""
        raise NotImplementedError

    def tokenizer(self, scenario: Scenario | None = None) -> Any:
        """Return the tokenizer of a scenario; without one, and by default, the embedded model's."""
        from transformers import AutoTokenizer

        return AutoTokenizer.from_pretrained(self.model(scenario))

    def model(self, scenario: Scenario | None = None) -> Path:
        """Return a folder with the model and the tokenizer of a scenario.

        The model is the embedded one, and not made to be run: it may know fewer tokens than the tokenizer.
        """
        from transformers import AutoTokenizer

        from gem.models import embedded_model

        if scenario is None or scenario.chat is None:
            return Path(embedded_model())
        folder = _models() / re.sub(r"\W", "-", scenario.name)
        if not folder.exists():
            shutil.copytree(embedded_model(), folder)
            scenario.tokenizer(AutoTokenizer.from_pretrained(embedded_model())).save_pretrained(folder)
        return folder


@lru_cache(maxsize=1)
def _models() -> Path:
    """Return a folder that is there as long as this process."""
    folder = tempfile.mkdtemp(prefix="gem-conformance-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return Path(folder)
