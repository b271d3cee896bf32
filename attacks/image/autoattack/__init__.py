"""AutoAttack, and the order of its attacks that adapts to the target."""
