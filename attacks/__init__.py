"""Attacks. The built-in ones are registered in setup.py; another package adds its own through the same entry points."""
