"""Condensers: small training sets that stand for a large one, chosen from it or made."""
