"""Attacks that put a suffix behind the request."""
