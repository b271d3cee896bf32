"""Attacks that transform an image: rotations, translations, flows, and functions of its colours."""
