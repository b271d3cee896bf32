"""Iterated FGSM with momentum, and its variants that carry over to other networks."""
