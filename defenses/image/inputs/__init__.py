"""Defenses that change the input in front of a network."""
