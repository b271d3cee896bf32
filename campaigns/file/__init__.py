"""The campaign file: its schema, its problems told by line, and the files that come with the package."""
