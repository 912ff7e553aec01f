"""Run with a Python that has optimum-onnx: `optimum_export.py SOURCE TARGET`, a saved model to ONNX."""

from __future__ import annotations

import sys

from optimum.onnxruntime import ORTModelForFeatureExtraction

source, target = sys.argv[1:]
ORTModelForFeatureExtraction.from_pretrained(source, export=True).save_pretrained(target)
