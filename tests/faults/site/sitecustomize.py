"""Brings faults into the installed `ssfnas`: Python imports this before all else where its folder is on PYTHONPATH."""

import json
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
import injected

sys.path.pop(0)
# torchrun itself has none: it hands them on to the ranks that it starts.
if "RANK" in os.environ or "torch.distributed.run" not in sys.orig_argv:
    injected.apply(json.loads(os.environ.pop("SSFNAS_TEST_FAULTS", "{}")))
