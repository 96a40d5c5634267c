"""The pages of environments are written by a script: are they of the environments that there are?"""

from pathlib import Path

from gem.registry import all_specs

PAGES = Path(__file__).parents[2] / "docs" / "environments"


def test_every_id_has_its_row():
    lines = [line for page in PAGES.glob("*.md") for line in page.read_text(encoding="utf-8").splitlines()]
    rows = {line.split("`")[1] for line in lines if line.startswith("| `")}
    assert rows == {env_id for env_id in all_specs() if not env_id.startswith("test:")}
