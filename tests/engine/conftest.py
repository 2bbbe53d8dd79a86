"""What supports the tests here can be imported by them, and its fixtures are everybody's."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from adjust_support import adjust, retrain, tailed  # noqa: F401
from search_support import few_digits, search  # noqa: F401
