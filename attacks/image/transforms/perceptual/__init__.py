"""Attacks within a perceptual distance: that of a network's features."""
