"""Condensers that choose images of the training data."""
