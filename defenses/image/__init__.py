"""Defenses of image classifiers, a folder for each kind."""
