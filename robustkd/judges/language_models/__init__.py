"""Judges by name that ask a language model: its rubric, and how its verdict is read."""
