"""Which shape, how many replicas, where, and why not the others."""
