"""Results: numbers collected from the cells of a store."""
