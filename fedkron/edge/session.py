"""ONNX Runtime sessions as a device wants them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fedkron.errors import BundleError

try:
    import onnxruntime
except ImportError as error:
    raise ImportError("a bundle needs onnxruntime and tokenizers: pip install 'fedkron[edge]'") from error

# Fused, this operator takes longer on a CPU than its two parts (8 to 11 % of a 6-layer BERT).
_SLOW_FUSIONS = ["SkipLayerNormFusion"]


def open_session(graph: Path, threads: int) -> Any:  # noqa: ANN401
    """A session on the CPU; `threads` is the number that one call may use, 0 for all cores.

    Raises `BundleError` for a file that is no such graph, or whose weights lie outside its folder (ONNX
    Runtime looks at that, links included).
    """
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    # Waiting threads that spin take the core from those that work.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    # Without it, products of an int8 base saturate on x64 CPUs that lack VNNI.
    options.add_session_config_entry("session.x64quantprecision", "1")
    try:
        return onnxruntime.InferenceSession(
            str(graph), options, providers=["CPUExecutionProvider"], disabled_optimizers=_SLOW_FUSIONS
        )
    except Exception as error:  # ONNX Runtime's have no class in common
        first_line = str(error).partition("\n")[0]
        raise BundleError(f"{graph} is not a graph that ONNX Runtime opens: {first_line}") from error
