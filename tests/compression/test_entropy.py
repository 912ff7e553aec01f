"""What entropy coding needs, and who does not need it."""

import subprocess
import sys


def test_without_constriction_only_what_needs_it_is_missing() -> None:
    # There is no wheel of it for Linux on ARM64, where bundles run and other codecs work.
    program = """
import sys
sys.modules["constriction"] = None
import numpy as np
import fedkron.edge.runtime
from fedkron.compression.entropy import ans_encode
from fedkron.errors import ConfigError
try:
    ans_encode(np.array([0, 1, 2], np.int32), np.array([1, 1], "<u2"))
except ConfigError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert "choose another codec for all nodes, such as int4" in done.stdout
