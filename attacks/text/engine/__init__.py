"""What attacks on language models share: suffixes and their losses, token search, templates, the models that help."""
