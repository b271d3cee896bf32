"""Trainings on condensed data: the set as a cell, and any recipe on it."""
