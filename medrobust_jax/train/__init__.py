"""Training: the state, one step of it, the optimizer, checkpoints, metrics, and the loop."""
