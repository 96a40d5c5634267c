"""The documentation: its examples run, and its site is built of Markdown."""

import importlib.util
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

ROOT = Path(__file__).parents[2]
PAGES = {
    "README.md": ["gem.make", "class Echo"],
    "docs/index.md": ["gem.make"],
    "docs/getting-started.md": ["gem.make"],
    "docs/concepts.md": ["rebn("],
    "docs/writing-environments.md": ["class Echo", "class Climb"],
}
"""By page, what the examples that are run have in them."""

NOT_RUN = ("GRPOTrainer", "dataset_name")


def load(name):
    spec = importlib.util.spec_from_file_location(name, ROOT / "ci" / "docs" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(("page", "mark"), [(page, mark) for page, marks in PAGES.items() for mark in marks])
def test_examples_run(page, mark, tmp_path):
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(), flags=re.DOTALL)
    (block,) = (each for each in blocks if mark in each and not any(word in each for word in NOT_RUN))
    script = tmp_path / "example.py"
    checked = '\nfrom gem.testing import check_env\ncheck_env("mylab:Climb-v0")\ncheck_env("mylab:Climb-v0-hard")\n'
    script.write_text(block + checked * ("class Climb" in block))
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_the_example_of_a_class_has_the_same_methods_everywhere():
    texts = [(ROOT / page).read_text() for page in ("README.md", "docs/writing-environments.md")]
    methods = [re.findall(r"    def (\w+)\(", text)[:3] for text in texts]
    assert methods[0] == methods[1] == ["reset", "step", "sample_random_action"]


def test_links_that_leave_the_site_become_paths():
    links = load("links")
    page = "See [the shims](../ci/cpu/verl/README.md), [`gem.x`](../gem/x.py) and [verl](verl.md)."
    assert links.for_site(page) == "See the shims (`ci/cpu/verl/README.md`), `gem.x` and [verl](verl.md)."
    contributing = SimpleNamespace(file=SimpleNamespace(src_uri="contributing.md"))
    included = links.on_page_markdown("include CONTRIBUTING.md\n", contributing)
    assert included.startswith("# Contributing")
    assert "](docs/" not in included


def test_docstrings_become_markdown():
    pytest.importorskip("griffe")
    docstrings = load("docstrings")
    text = """Do it, see :class:`gem.Env`.

    .. code-block:: bash

        gem envs

    >>> 1 + 1
    2

    ====  ====
    a     b
    ====  ====
    """
    found = docstrings.as_markdown(text)
    assert "see `gem.Env`" in found
    assert "```bash\n    gem envs\n    ```" in found
    assert "```pycon\n    >>> 1 + 1\n    2\n```" in found
    assert "```text\n    ====  ====" in found
