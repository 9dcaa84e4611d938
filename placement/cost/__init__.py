"""How long a step takes and what clients see of it: work, fitted constants, steady state, tails, corrections."""
