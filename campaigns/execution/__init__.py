"""Execution: a plan run by an engine, cell by cell, with its profile and its record."""
