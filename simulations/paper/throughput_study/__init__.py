"""What `simulations/paper/throughput.py` is made of."""
