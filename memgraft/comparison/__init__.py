"""Comparing ways to teach: the same batches, seeds and probes for each, runs on disk, fronts of learning against forgetting."""
