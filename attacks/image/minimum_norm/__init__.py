"""Attacks that look for the smallest perturbation that changes the answer."""
