"""The run folders of tests/results serve the pictures, too; the files beside this one can be imported by its tests."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "results"))
sys.path.insert(0, str(Path(__file__).parent))

from report_support import hostile  # noqa: F401
