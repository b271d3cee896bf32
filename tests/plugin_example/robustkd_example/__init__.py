"""A defense, an attack and a world of prompts from outside of robustkd."""
