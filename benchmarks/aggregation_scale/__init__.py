"""The parts of benchmarks/aggregation.py: what the clients send, one aggregation, speed in turns, tables."""
