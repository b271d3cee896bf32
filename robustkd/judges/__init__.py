"""Judges: whether an output gives what its request asks for."""
