"""Guards around models that draw."""
