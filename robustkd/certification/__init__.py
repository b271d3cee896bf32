"""Bounds on what a network can answer within a ball around an image: what no attack can cross."""
