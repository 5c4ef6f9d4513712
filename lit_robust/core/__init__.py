"""What every room may import: batches, results, errors, files, seeds and precision."""
