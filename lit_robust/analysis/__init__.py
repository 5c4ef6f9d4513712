"""Studies of a trained network."""
