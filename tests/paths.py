"""Where the tests find the repository, and what earlier versions wrote."""

import os
from pathlib import Path

ROOT = Path(__file__).parents[1]
EARLIER = ROOT / "tests/earlier"
# For a process of its own: the code of this copy of the repository, whatever is installed.
PYTHONPATH = os.pathsep.join(str(folder) for folder in (ROOT, ROOT / "pipeline", ROOT / "flows"))
