"""Attacks that change one rectangle of an image: threat models whose ``where`` is a patch."""
