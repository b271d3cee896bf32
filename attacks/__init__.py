"""Attacks. The built-in ones are registered in entry_points/attacks.ini; another package adds its own through the same entry points."""
