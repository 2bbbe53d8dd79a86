"""`search_support` can be imported by the tests beside it, and its fixture is everybody's."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from search_support import search  # noqa: F401
