"""Networks that learn from a few labelled images and many unlabelled ones, some of which may be of no class that they know."""
