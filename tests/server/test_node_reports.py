"""What is written down of single nodes: what they sent, and nothing where they are protected."""

import json
from pathlib import Path

import numpy as np
import pytest
from federation_cases import Federation, federate, grid_of, run_config_for, tiny_layout

from fedkron.compression import decode
from fedkron.flower.wire import PAYLOAD
from fedkron.layout import flatten
from fedkron.rundir import ADAPTER, ROUNDS
from fedkron.exchange import load_adapter


def rounds(federation: Federation) -> list[dict]:
    return [json.loads(line) for line in (federation.folder / ROUNDS).read_text().splitlines()]
