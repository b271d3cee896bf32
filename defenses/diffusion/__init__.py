"""Unlearning: defenses of text-to-image models."""
