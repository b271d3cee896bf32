"""Trainings that look at a language model's residual streams, or change them."""
