"""`deploy_support` can be imported by the tests beside it, and its fixtures are everybody's."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from deploy_support import photo_data, photos, run  # noqa: F401
