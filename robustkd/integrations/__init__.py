"""RobustBench, AutoAttack's interface for it, and the examination of what is installed."""
