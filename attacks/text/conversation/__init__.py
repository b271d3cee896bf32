"""Attacks that have a conversation before the request."""
