"""Names that stand for all attacks of another library, which are no attacks themselves."""

FAMILIES = frozenset({"adv-lib", "art", "foolbox", "torchattacks"})
