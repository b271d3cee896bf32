"""Comparison: campaigns beside each other, gates and baselines."""
