"""Corruptions of images, as an attack of the worst among them."""
