"""The parts of benchmarks/adapters.py: who takes part, what is timed and how, and the tables."""
