"""Datasets by name, and the platform's splitting of them. Nothing here imports torch."""

from robustkd.data.splits import SplitParams, Splits, load_splits

__all__ = ["SplitParams", "Splits", "load_splits"]
