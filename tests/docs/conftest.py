"""The generator of the documentation is imported as MkDocs imports it: from docs/."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "docs"))
