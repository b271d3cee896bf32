"""Attacks that change few pixels, each by as much as the pixel range allows: the norm is l0."""
