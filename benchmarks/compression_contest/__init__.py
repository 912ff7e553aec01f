"""The parts of benchmarks/compression.py: who takes part, how it is timed, and the tables."""
