"""Lets other processes import the environments of these tests, as this one does."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
