"""Defenses that are trained for what can be proved of them."""
