"""Options, limits and tasks, from RL2's configuration and rows."""

from __future__ import annotations

from typing import Any, NamedTuple

from gem.rollout import ChatRenderer, Episode, Limits, OnError, append_episode, check_on_error, shared_renderer
from gem.tasks import Task, check_split


class Options(NamedTuple):
    """The keys under ``rollout.gem``.

    Attributes:
        max_context: tokens of an episode. By default ``rollout.server_args.context_length`` or the longest sequence
            that RL2 trains on (``actor.max_length_per_device``), whichever is less.
        max_turns: turns per episode. For rl-square 0.0.2 it is ``rollout.max_turns``, and this must not be given.
        step_timeout: seconds that a step of a blocking environment may take.
        system: a system message.
        tool_role: whether a tool's observation is a message of the tool role; see :class:`gem.rollout.ChatRenderer`.
        template_kwargs: arguments of the chat template, for example ``{enable_thinking: false}``.
        allow_control_tokens: whether control tokens that an observation spells out become control tokens.
        on_error: ``"mask"`` leaves out of training the episodes that failed for reasons that are not the model's;
            ``"keep"`` learns from what there is of them.
        episodes: a folder for all episodes as JSON lines; :func:`gem.rollout.read_episodes` reads them.
    """

    max_context: int | None = None
    max_turns: int | None = None
    step_timeout: float | None = 60.0
    system: str | None = None
    tool_role: bool = False
    template_kwargs: dict[str, Any] | None = None
    allow_control_tokens: bool = False
    on_error: OnError = "mask"
    episodes: str | None = None


def task_of_row(row: dict[str, Any]) -> Task:
    """Return the task of a row, or of its ``extra_info``.

    Raises:
        ValueError: there is none; or RL2 would begin with the row's own prompt, and not with the environment.
    """
    text = (row.get("extra_info", row) or {}).get("task")
    if text is None or row.keys() & {"prompt", "messages"}:
        raise ValueError(
            f"the row {str(row)[:200]} is not a task: write rows with `gem tasks --format rl2`, and name them as "
            "train_data.path and test_data.path"
        )
    return Task.from_json(text)


def tasks_of(config: Any, train: bool) -> list[Task]:
    """Return the tasks of ``train_data.path`` or ``test_data.path``; none if RL2 is to do without one.

    Raises:
        ValueError: a row is no task, or is of the wrong split.
    """
    name = "train_data.path" if train else "test_data.path"
    path = key_of(config, name)
    if path is None:
        return []
    from RL2.datasets.base import load_dataset

    tasks = [task_of_row(row) for row in load_dataset(path)]
    try:
        check_split(tasks, "train" if train else "eval")
    except ValueError as error:
        raise ValueError(f"{name}: {error}; `gem tasks --split eval` writes others") from None
    return tasks


def key_of(config: Any, name: str, default: Any = None) -> Any:
    """Return a key of RL2's whole configuration, given ``rollout`` of it."""
    from omegaconf import OmegaConf

    return OmegaConf.select(config, f"..{name}", default=default)


def options_of(config: Any) -> Options:
    """Return the keys under ``gem``.

    Raises:
        ValueError: there is no such option, or no such value of it.
    """
    from omegaconf import OmegaConf

    given = OmegaConf.to_container(config.gem) if config.get("gem") else {}
    unknown = sorted(given.keys() - set(Options._fields))
    if unknown:
        raise ValueError(f"rollout.gem has no {', '.join(unknown)}; it has {', '.join(Options._fields)}")
    options = Options(**given)
    check_on_error(options.on_error)
    return options


def context_of(config: Any, options: Options) -> int | None:
    """Return the tokens of an episode: what is asked for, or else what the engine and RL2's workers hold.

    Raises:
        ValueError: more is asked for than RL2's workers hold. RL2 would end the run with the first such episode.
    """
    held: dict[str, int] = {}
    for worker in ("actor", "critic") if key_of(config, "adv.estimator") == "gae" else ("actor",):
        devices = key_of(config, f"{worker}.sp_size", 1) * key_of(config, f"{worker}.tp_size", 1)
        for name in ("max_length_per_device", "max_inference_length_per_device"):
            length = key_of(config, f"{worker}.{name}")
            if length is not None:
                held[f"{worker}.{name}"] = length * devices
    for name, length in held.items():
        if options.max_context is not None and options.max_context > length:
            raise ValueError(
                f"rollout.gem.max_context is {options.max_context}, but {name} allows sequences of {length} tokens"
            )
    server = config.server_args.get("context_length")
    lengths = [length for length in (server, *held.values()) if length is not None]
    return options.max_context or min(lengths, default=None)


def limits_of(options: Options, params: dict[str, Any]) -> Limits:
    """Return the limits of episodes.

    Raises:
        ValueError: one makes no sense, or the tokens of a turn have none.
    """
    if params.get("max_new_tokens") is None:
        raise ValueError("RL2 needs the tokens of a turn: set max_new_tokens of its sampling parameters")
    return Limits(options.max_turns, params["max_new_tokens"], options.max_context, None, options.step_timeout)


def renderer_of(tokenizer: Any, options: Options) -> ChatRenderer:
    """Return the renderer of a tokenizer."""
    return shared_renderer(
        tokenizer, options.system, options.tool_role, options.template_kwargs, options.allow_control_tokens
    )


def record_episode(options: Options, episode: Episode, step: int | None = None) -> None:
    """Write an episode where it is wanted."""
    if options.episodes is not None:
        append_episode(options.episodes, episode, step)
