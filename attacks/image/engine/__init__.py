"""What attacks on images share: losses, constraints, the counted target, and the loops around them."""
