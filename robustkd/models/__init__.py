"""Architectures by name. Each module here is a plug-in, imported when its name is asked for."""
