"""White-box attacks on a fixed budget, by gradients of the target."""
