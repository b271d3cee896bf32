"""Condensers that match what training on real images does to a network's weights."""
