"""What several tests share: toy models, toy worlds of prompts, results that no run made, and packages that are installed for a test."""
