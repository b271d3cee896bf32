"""Attacks that change the colours of an image by a function."""
