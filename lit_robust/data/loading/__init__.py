"""Samples of a split as batches: their order, where they come from, how they are decoded and loaded."""
