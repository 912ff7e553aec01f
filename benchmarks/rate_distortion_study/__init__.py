"""The parts of benchmarks/rate_distortion.py: real updates, codecs, figures, tables and the plot."""
