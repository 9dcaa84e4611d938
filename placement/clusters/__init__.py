"""GPUs, links, islands and machines: what a cluster is, its presets, and how a description of one is read."""
