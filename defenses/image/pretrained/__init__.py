"""Networks that come trained: your own, and those of RobustBench."""
