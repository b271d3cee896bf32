"""Ensembles, and training that makes their members differ."""
