"""Attacks that change a model's weights, which whoever holds them can do."""
