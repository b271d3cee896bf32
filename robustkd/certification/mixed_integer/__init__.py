"""A small ReLU network as a mixed-integer program."""
