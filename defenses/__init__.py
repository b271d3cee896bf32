"""Defenses: a recipe each, around one training loop."""
