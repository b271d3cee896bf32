"""Attacks that see nothing but the predicted class."""
