"""Questions from a data set: of a hub, of a local file or folder, or of the samples that come with this package.

A data set is loaded once a process and shared by all environments. The last part of this module is the base class of
the environments that ask from one.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from gem.core import EnvSpec
from gem.envs.question import QuestionEnv

Row = Mapping[str, Any]
Rows = Sequence[Row]

SAMPLE = "sample:"
"""``sample:math`` is the file ``data/math.jsonl`` of this package."""

_SAMPLES = Path(__file__).with_name("data")
_loaded: dict[tuple[str, str | None], Rows] = {}
_lock = threading.Lock()


def needs_hub(spec: EnvSpec) -> bool:
    """Return whether an environment's questions are on a hub, without loading anything."""
    name = str(spec.kwargs.get("dataset_name") or "")
    return bool(name) and not name.startswith(SAMPLE) and not Path(name).exists()


def load_rows(dataset_name: str, split: str | None = None) -> Rows:
    """Return the rows of a data set, loading it unless this process has done so before.

    Args:
        dataset_name: a ``.jsonl`` or ``.parquet`` file; a folder of such files, one per split, or one that
            ``save_to_disk`` wrote; ``sample:`` and a name; or the id of a data set on a hub.
        split: which split; None if there is only one. A file has none.

    Raises:
        ImportError: it needs a package that is not installed.
        ConnectionError: the hub cannot be reached.
        FileNotFoundError: there is no such file or sample.
        ValueError: there is no such split, or there are several and none is named; or it is empty.
    """
    with _lock:
        key = (dataset_name, split)
        if key not in _loaded:
            rows = _load(dataset_name, split)
            if len(rows) == 0:
                raise ValueError(f"{dataset_name} holds no rows")
            _loaded[key] = rows
        return _loaded[key]


def _load(name: str, split: str | None) -> Rows:
    if not name:
        raise ValueError("name a data set: dataset_name= (a hub id, a file or a folder) or dataset= (its rows)")
    if name.startswith(SAMPLE):
        return _read_file(_SAMPLES / f"{name.removeprefix(SAMPLE)}.jsonl")
    path = Path(name)
    if path.is_dir():
        return _read_folder(path, split)
    if path.exists() or path.suffix in (".jsonl", ".parquet"):
        return _read_file(path)
    return _load_from_hub(name, split)


def _read_file(path: Path) -> Rows:
    if not path.exists():
        raise FileNotFoundError(f"there is no file {path}")
    if path.suffix == ".jsonl":
        with open(path, encoding="utf-8") as file:
            return [json.loads(line) for line in file if line.strip()]
    if path.suffix == ".parquet":
        try:
            from pyarrow import parquet
        except ImportError as error:
            raise ImportError(f"reading {path} needs pyarrow: install gem-adapters[data]") from error
        return parquet.read_table(path).to_pylist()
    raise ValueError(f"cannot read {path}: expected a .jsonl or .parquet file, or a folder")


def _read_folder(folder: Path, split: str | None) -> Rows:
    if (folder / "dataset_dict.json").exists() or (folder / "state.json").exists():
        return choose_split(_datasets().load_from_disk(str(folder)), split, str(folder))
    files = {path.stem: path for path in sorted(folder.iterdir()) if path.suffix in (".jsonl", ".parquet")}
    return _read_file(choose_split(files, split, str(folder)))


def _load_from_hub(name: str, split: str | None) -> Rows:
    datasets = _datasets()
    try:
        return choose_split(datasets.load_dataset(name), split, name)
    except (OSError, datasets.exceptions.DatasetsError) as error:
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        raise ConnectionError(
            f"cannot load the data set {name!r} from the hub ({reason}). "
            "Where there is no hub, name a local .jsonl or .parquet file, or a folder: dataset_name='data/train.jsonl'."
        ) from error


def _datasets() -> Any:
    try:
        import datasets
    except ImportError as error:
        raise ImportError("loading it needs the package datasets: install gem-adapters[data]") from error
    return datasets


def choose_split(splits: Any, split: str | None, name: str) -> Any:
    """Return a split of a mapping of them (a ``DatasetDict``, say); rows that are no mapping have none.

    Raises:
        ValueError: there is no such split, or there are several and none is named.
    """
    if not isinstance(splits, Mapping):
        return splits
    if split is None and len(splits) == 1:
        return next(iter(splits.values()))
    if split not in splits:
        wanted = "several splits, and none is named" if split is None else f"no split {split!r}"
        raise ValueError(f"{name} has {wanted}: split= may be {', '.join(map(repr, splits)) or 'nothing: it is empty'}")
    return splits[split]


_KEYS = ("_question_key", "_answer_key", "_test_key")


class DatasetEnv(QuestionEnv):
    """Questions from the rows of a data set. Subclasses write ``ask``, ``grade`` and the rest of a question.

    Args:
        dataset_name: what to load: see :func:`load_rows`.
        split: which split of it.
        dataset: rows to ask from instead: a sequence of mappings, such as a ``datasets.Dataset``, or a mapping of
            splits, such as a ``DatasetDict``.
        columns: what a row must have.
        seed: question of the first ``reset()`` that is called without a seed.
        in_order: resets without a seed ask the questions in the order of the data set, from the first one on.
    """

    def __init__(
        self,
        dataset_name: str | None,
        split: str | None,
        dataset: Any,
        columns: Sequence[str],
        seed: int | None,
        in_order: bool = False,
    ) -> None:
        super().__init__()
        name = dataset_name or ""
        self._name, self._split, self._columns = name or "the data set", split, columns
        init = self._init
        self.dataset = load_rows(name, split) if dataset is None else dataset
        self._init = init  # whose data set is loaded again, or shared, where the environment is built again
        self._first_seed, self._in_order = seed, in_order

    @property
    def size(self) -> int:
        """How many rows there are."""
        return len(self._rows)

    @property
    def dataset(self) -> Rows:
        """The rows, which may be set: the next ``reset`` asks from the new ones, beginning a pass.

        Raises:
            ValueError: they are none, have several splits, or lack a column.
        """
        return self._rows

    @dataset.setter
    def dataset(self, dataset: Any) -> None:
        rows = choose_split(dataset, self._split, self._name)
        if len(rows) == 0:
            raise ValueError(f"{self._name} holds no rows")
        keys = [getattr(self, name) for name in _KEYS if hasattr(self, name)]  # which may have been set
        missing = [column for column in keys or self._columns if column not in rows[0]]
        if missing:
            there = ", ".join(map(repr, rows[0]))
            raise ValueError(f"{self._name} has no column {missing[0]!r}; it has {there}")
        self._rows = rows
        self._remember(dataset=rows)
        if self._episode_seeds is not None:
            self._episode_seeds.begin()

    @property
    def row(self) -> Row:
        """The question's row."""
        return self._rows[self.idx]

    def _random_row(self) -> Row:
        return self._rows[self.action_rng.randrange(len(self._rows))]
