"""Tasks as verl's data set, and the options of the agent loop, which are checked before anything is loaded."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any

from hydra.utils import instantiate
from omegaconf import OmegaConf
from omegaconf.errors import ConfigKeyError
from torch.utils.data import Dataset
from verl.utils.checkpoint.checkpoint_manager import find_latest_ckpt_path
from verl.utils.import_utils import resolve_config_path

from gem.core import Env
from gem.rollout import (
    ChatRenderer,
    ContextTooSmall,
    Limits,
    OnError,
    begin_run,
    check_gamma,
    check_on_error,
    check_tasks,
    drop_overlong,
    shared_renderer,
)
from gem.tasks import Task, load_tasks


@dataclass(frozen=True)
class LoopOptions:
    """The options of :class:`gem_verl.GemAgentLoop`, in the YAML file of ``agent_loop_config_path``.

    Attributes:
        mode: ``concat``, one sample per episode; or ``turn``, one sample per turn.
        max_turns: turns per episode; None for as many as the environment allows.
        max_new_tokens: tokens per turn; None for ``data.max_response_length``.
        step_timeout: seconds that a step of a blocking environment may take.
        retries: how often an episode is begun again whose environment fails before the first token is sampled.
        on_error: ``mask``: an invalid episode (:attr:`gem.rollout.Episode.valid`) is left out of what is learned;
            ``keep``: it is learned from, with the rewards that it had until then.
        episodes: a folder for the episodes as JSON lines; :func:`gem.rollout.read_episodes` reads them.
        make_env: builds a task's environment; wrappers go in here. In YAML:
            ``{_target_: hydra.utils.get_method, path: my_module.make_env}``.

    Raises:
        ValueError: an option has no such value.
    """

    mode: str = "concat"
    max_turns: int | None = None
    max_new_tokens: int | None = None
    step_timeout: float | None = 60.0
    retries: int = 2
    on_error: OnError = "mask"
    episodes: str | None = None
    make_env: Callable[[Task], Env] = Task.make

    def __post_init__(self) -> None:
        if self.mode not in ("concat", "turn"):
            raise ValueError(f"mode is 'concat' or 'turn', got {self.mode!r}")
        check_on_error(self.on_error)

    @classmethod
    def read(cls, given: Mapping[str, Any]) -> LoopOptions:
        """Return options from a configuration.

        Raises:
            TypeError: there is no such option.
            ValueError: an option has no such value.
        """
        names = [field.name for field in fields(cls)]
        if unknown := sorted(set(given) - set(names)):
            raise TypeError(f"GemAgentLoop has no option {', '.join(unknown)}: there are {', '.join(names)}")
        return cls(**given)

    def limits(self, rollout: Any) -> Limits:
        """Return the limits of an episode.

        Args:
            rollout: ``actor_rollout_ref.rollout``.

        Raises:
            ValueError: an option has no such value.
        """
        length = rollout.response_length
        if self.max_new_tokens is not None and self.max_new_tokens > length:
            raise ValueError(f"max_new_tokens={self.max_new_tokens} is more than data.max_response_length={length}")
        return Limits(
            self.max_turns,
            length if self.max_new_tokens is None else self.max_new_tokens,
            max_context=rollout.get("max_model_len") or rollout.prompt_length + length,
            max_completion=length if self.mode == "concat" else None,
            step_timeout=self.step_timeout,
            retries=self.retries,
        )


class GemTaskDataset(Dataset):
    """verl's ``data.custom_cls``: one row per task, from expressions and files (:func:`gem.tasks.load_tasks`).

    Tasks of ``data.train_files`` are of the split ``train``, those of ``data.val_files`` of the split ``eval``, so
    that they share no episode, whatever their seeds. The whole job is checked here, since verl makes the data sets
    before anything is loaded: every environment is built, some tasks are begun, and their first prompts measured
    (:func:`gem.rollout.check_tasks`). ``data.filter_overlong_prompts=True`` begins all tasks and drops those whose
    first prompt is longer than ``data.max_prompt_length``.

    Args:
        data_files: ``data.train_files`` or ``data.val_files``: an expression, a path, or several, which are mixed.
        tokenizer: the model's tokenizer.
        config: ``data``, as a part of the whole configuration.
        processor: not used.
        max_samples: take the first so many tasks; -1 for all.

    Raises:
        ValueError: a source cannot be read, or has tasks of the other split; ``data.max_prompt_length`` is too small
            for a first prompt; ``algorithm.gamma`` or an option of the agent loop has no such value; or the folder of
            episodes holds those of another run.
        TypeError: the agent loop or an environment has no such option.
        ImportError: an environment needs what is not installed.
    """

    def __init__(
        self, data_files: Any, tokenizer: Any, config: Any, processor: Any = None, max_samples: int = -1
    ) -> None:
        split = _split_of(data_files, config)
        self.tasks = load_tasks(data_files if isinstance(data_files, str) else list(data_files), split)
        if max_samples > 0:
            self.tasks = self.tasks[:max_samples]
        options = _checked_options(config)
        self._check_prompts(renderer_of(tokenizer, config), config, options)
        if split == "train" and options.episodes is not None:
            begin_run(options.episodes, resume=_resumes(_of_job(config, "trainer")))

    def _check_prompts(self, renderer: ChatRenderer, config: Any, options: LoopOptions) -> None:
        longest = config.max_prompt_length
        limits = Limits(max_new_tokens=1, max_context=longest + 1, step_timeout=options.step_timeout)
        try:
            if config.get("filter_overlong_prompts"):
                self.tasks = drop_overlong(self.tasks, renderer, limits, options.make_env)
            check_tasks(self.tasks, renderer, limits, options.make_env)
        except ContextTooSmall as error:
            raise ValueError(
                f"data.max_prompt_length={longest} is too small: the first prompt of {error.task.env_id} "
                f"(seed {error.task.seed}) has {error.prompt_length} tokens. Set data.max_prompt_length to "
                f"{error.prompt_length} or more."
            ) from None

    def __len__(self) -> int:
        return len(self.tasks)

    def __getitem__(self, index: int) -> dict[str, Any]:
        task = self.tasks[index]
        return {
            "raw_prompt": [{"role": "user", "content": f"{task.env_id}#{task.seed}"}],  # for logs only
            "data_source": task.env_id,
            "agent_name": "gem",
            "index": index,
            "task": task.to_json(),
        }


def _split_of(data_files: Any, config: Any) -> str:
    """Return which split is being read, which verl shows by the value only."""
    is_train, is_val = data_files == config.get("train_files"), data_files == config.get("val_files")
    if is_train and is_val:
        raise ValueError(
            f"data.train_files and data.val_files are both {data_files!r}, so they cannot be told apart: "
            "write ',split=eval' at the end of data.val_files"
        )
    return "eval" if is_val else "train"


def _of_job(data_config: Any, key: str) -> Any:
    """Return a part of the configuration whose part ``data`` is; None if ``data`` stands alone."""
    try:
        return OmegaConf.select(data_config, f"..{key}")
    except ConfigKeyError:
        return None


def _checked_options(data_config: Any) -> LoopOptions:
    """Return the agent loop's options. Else a wrong one would show in verl's workers, episode by episode."""
    path = _of_job(data_config, "actor_rollout_ref.rollout.agent.agent_loop_config_path")
    options = LoopOptions()
    for entry in OmegaConf.load(resolve_config_path(path)) if path else ():
        if entry.get("_target_") == "gem_verl.GemAgentLoop":
            given = {name: value for name, value in entry.items() if name not in ("_target_", "name")}
            options = LoopOptions.read(instantiate(given, _convert_="all"))
    if (rollout := _of_job(data_config, "actor_rollout_ref.rollout")) is not None:
        options.limits(rollout)
    if (gamma := _of_job(data_config, "algorithm.gamma")) is not None:
        check_gamma(gamma)
    return options


def _resumes(trainer: Any) -> bool:
    """Return whether verl will go on from a checkpoint."""
    if trainer is None or trainer.resume_mode == "disable":
        return False
    return trainer.resume_mode == "resume_path" or find_latest_ckpt_path(trainer.default_local_dir) is not None


def renderer_of(tokenizer: Any, data_config: Any) -> ChatRenderer:
    """Return the renderer that the part ``data`` of the configuration asks for."""
    template_kwargs = OmegaConf.to_container(OmegaConf.create(data_config.get("apply_chat_template_kwargs") or {}))
    return shared_renderer(
        tokenizer,
        data_config.get("system"),
        data_config.get("tool_role", False),
        template_kwargs,
        data_config.get("allow_control_tokens", False),
    )
