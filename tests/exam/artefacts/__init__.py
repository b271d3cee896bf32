"""Networks that look more robust than they are, by what hides the weakness."""
