"""Attacks that move the embeddings of a prompt, which no text can do."""
