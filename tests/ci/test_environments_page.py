"""The page of environments is written by a script: is it of the environments that there are?"""

from pathlib import Path

from gem.registry import all_specs

PAGE = Path(__file__).parents[2] / "docs" / "environments.md"


def test_every_id_has_its_row():
    rows = {line.split("`")[1] for line in PAGE.read_text(encoding="utf-8").splitlines() if line.startswith("| `")}
    assert rows == {env_id for env_id in all_specs() if not env_id.startswith("test:")}
