"""What was decided, what came of it, and what was learnt from that."""
