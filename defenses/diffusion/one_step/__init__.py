"""Generators that draw in one step, distilled from a diffusion model."""
