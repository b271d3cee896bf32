"""Networks that come trained, your own and those of RobustBench, and students by recipes of torchdistill."""
