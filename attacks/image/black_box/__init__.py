"""Attacks that only see the target's outputs."""
