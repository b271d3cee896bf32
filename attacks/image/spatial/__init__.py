"""Attacks that move pixels: rotations, translations and flows."""
