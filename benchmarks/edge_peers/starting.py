"""From the start of a process to its first answer."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryFile

from benchmarks.adapter_contest.timing import Spread
from benchmarks.edge_peers.cases import TASK

TEXT = "Who wrote Hamlet ?"

_RUNTIME = """
import sys
from pathlib import Path
from fedkron.edge.runtime import Bundle
bundle = Bundle.open(Path(sys.argv[1]), threads=1)
print(bundle.predict([sys.argv[2]], sys.argv[3], merged=bool(sys.argv[4:])), flush=True)
"""

_BY_HAND = """
import sys
import numpy as np, onnxruntime, tokenizers
folder, text = sys.argv[1:3]
options = onnxruntime.SessionOptions()
options.intra_op_num_threads = 1
session = onnxruntime.InferenceSession(f"{folder}/merged-{sys.argv[3]}.onnx", options)
ids = np.array([tokenizers.Tokenizer.from_file(f"{folder}/tokenizer.json").encode(text).ids])
print(session.run(None, {"input_ids": ids, "attention_mask": np.ones_like(ids)})[0], flush=True)
"""

_PEFT = """
import sys
import torch
from peft import PeftModel
from transformers import AutoModel, AutoTokenizer
torch.set_num_threads(1)
model = PeftModel.from_pretrained(AutoModel.from_pretrained(sys.argv[1]), sys.argv[2]).eval()
with torch.inference_mode():
    tokens = AutoTokenizer.from_pretrained(sys.argv[1])(sys.argv[3], return_tensors="pt")
    print(model(**tokens).last_hidden_state.mean(), flush=True)
"""

_OPTIMUM = """
import sys
from optimum.onnxruntime import ORTModelForFeatureExtraction
from transformers import AutoTokenizer
tokens = AutoTokenizer.from_pretrained(sys.argv[1])(sys.argv[3], return_tensors="np")
model = ORTModelForFeatureExtraction.from_pretrained(sys.argv[2])
print(model(**tokens).last_hidden_state.mean(), flush=True)
"""

Command = Sequence[str]


def ours(bundle: Path) -> dict[str, Command]:
    """Our runtime with the graph that has a slot and with the merged one, run.py, and by hand."""
    arguments = [str(bundle), TEXT, TASK]
    return {
        "fedkron.edge.runtime, slot": [sys.executable, "-c", _RUNTIME, *arguments],
        "fedkron.edge.runtime, merged": [sys.executable, "-c", _RUNTIME, *arguments, "merged"],
        "run.py, slot": [sys.executable, str(bundle / "run.py"), TEXT, "--task", TASK, "--threads", "1"],
        "onnxruntime and tokenizers by hand, merged": [sys.executable, "-c", _BY_HAND, *arguments],
    }


def peft(saved: Path, checkpoint: Path) -> Command:
    """torch, transformers and PEFT."""
    return [sys.executable, "-c", _PEFT, str(saved), str(checkpoint), TEXT]


def optimum(python: Path, saved: Path, exported: Path) -> Command:
    """Optimum's own model class, which needs torch and transformers too."""
    return [str(python), "-c", _OPTIMUM, str(saved), str(exported), TEXT]


def first_answers(commands: Mapping[str, Command], rounds: int) -> dict[str, Spread]:
    """Seconds until the first line of output, in turns, files in the page cache."""
    seconds: dict[str, list[float]] = {name: [] for name in commands}
    for _ in range(rounds):
        for name, command in commands.items():
            seconds[name].append(_until_first_line(command))
    return {
        name: Spread.of(values) if rounds > 1 else Spread(*values * 3) for name, values in seconds.items()
    }


def _until_first_line(command: Command) -> float:
    start = time.perf_counter()
    with (
        TemporaryFile() as errors,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors) as process,
    ):
        assert process.stdout is not None  # a pipe was asked for
        answered = process.stdout.readline()
        seconds = time.perf_counter() - start
        process.stdout.read()
        if process.wait() or not answered.strip():
            errors.seek(0)
            raise RuntimeError(f"no answer from {command[:2]} …: {errors.read().decode()[-2000:]}")
    return seconds
