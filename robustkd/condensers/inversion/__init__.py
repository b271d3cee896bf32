"""Condensers that invert a trained network: images from its weights and its BatchNorm statistics."""
