"""A person at the terminal, as the agent of an evaluation."""

from __future__ import annotations

from collections.abc import Callable

from gem.cli.play import typed_action
from gem.cli.printing import say
from gem.evaluation.agents import Message, Misconfigured, TextAgent
from gem.rollout.episode import Episode
from gem.tasks import Task


class HumanAgent(TextAgent):
    """A person, who is shown each observation and types each action."""

    name = "human"

    async def run_episode(self, task: Task, number: int) -> Episode:
        """Run an episode of a task, and show how it ended."""
        episode = await super().run_episode(task, number)
        if episode.valid:
            say(f"\n{episode.turns[-1].observation}\n\n{'Won' if episode.success else 'Not won'}.")
        return episode

    def begin(self, task: Task, number: int) -> Callable[[list[Message]], str]:
        """Return the function that shows an observation and reads an action."""
        say(f"\n--- {task.env_id}, seed {task.seed}")
        return _typed


def _typed(messages: list[Message]) -> str:
    observation = messages[-1]["content"]
    say(f"\n{observation}\n")
    try:
        return typed_action(observation)
    except EOFError:
        raise Misconfigured("the game was left: what was played to its end is kept, and --resume goes on") from None
