"""Files that can be read in one go."""

from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
LONGEST = {"gem": 400, "adapters": 300, "examples": 300, "ci": 400}


@pytest.mark.parametrize("folder", LONGEST)
def test_no_file_of_code_is_long(folder):
    lengths = {path: len(path.read_text().splitlines()) for path in (ROOT / folder).rglob("*.py")}
    assert lengths
    assert {str(path): length for path, length in lengths.items() if length > LONGEST[folder]} == {}
