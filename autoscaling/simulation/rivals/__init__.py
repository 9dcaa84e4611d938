"""How others scale, each with the formula that its documents give, as policies of the simulator."""
