"""One-step generators by consistency: what is seen along one drawing is to be the same picture."""
