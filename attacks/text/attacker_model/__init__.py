"""Attacks whose prompts another language model writes."""
