"""What `simulations/paper/forgetting.py` is made of."""
