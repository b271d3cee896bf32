"""Adversarial training by a teacher's answers."""
