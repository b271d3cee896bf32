"""The attack on a network that was distilled from the target's answers."""
