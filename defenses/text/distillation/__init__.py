"""Distilled language models: one training, and the methods as its settings."""
