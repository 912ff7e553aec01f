"""The tables of the Kron-LoRA paper (arXiv 2508.01961), one command each."""
