"""Defenses of language models."""
