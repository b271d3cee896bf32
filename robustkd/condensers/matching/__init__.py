"""Condensers that match the features of real and synthetic images in random networks."""
