"""Brings faults into the installed `ssfnas`: Python imports this before all else where its folder is on PYTHONPATH."""

import json
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
import zygote

sys.path.pop(0)
zygote.apply(json.loads(os.environ.pop("SSFNAS_TEST_FAULTS", "{}")))
