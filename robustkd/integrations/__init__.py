"""Other people's packages: what they miss, what they expect of us, and whether they are installed soundly."""
