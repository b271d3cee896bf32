"""Networks that learn one task after the other, and remember some of it."""
