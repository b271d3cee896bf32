"""Attacks around another attack on prompts."""
