"""Devices and processes: the mesh that a batch is laid over, and the hosts that share a run."""
