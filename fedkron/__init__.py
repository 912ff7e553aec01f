"""fedkron: federated and edge exchange of Kron-LoRA adapters."""
