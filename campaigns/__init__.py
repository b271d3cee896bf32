"""Campaigns: a file becomes a plan of cells, which are executed into a store, collected as results and compared."""
