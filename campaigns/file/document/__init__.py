"""The keys of a campaign file, as pydantic models: which there are, their types and their ranges."""
