"""Defenses that change how a model draws, and none of its weights."""
