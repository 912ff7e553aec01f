"""The parts of benchmarks/quantization_claim.py: the quantizer, what is compared, and the tables."""
