"""The browser comes from the neighbours' tests."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parent.parent / "export"))
