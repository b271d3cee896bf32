"""Checks: evidence on whether a robust accuracy can be believed."""
