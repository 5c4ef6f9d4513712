"""Studies of a trained network: what its filters, units and representations are. Each is of pure functions."""
