"""The request in other words or spellings, without a search."""
