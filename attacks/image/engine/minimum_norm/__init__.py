"""What minimum-norm attacks share: the search for the nearest adversarial image, and its refinement."""
