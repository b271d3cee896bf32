"""Detectors: what tells inputs and prompts that are not like clean ones."""
