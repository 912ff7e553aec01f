"""Parts of `benchmarks.simulation_scale`."""
