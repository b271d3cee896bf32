"""Evaluation: an attack is run, its outputs are judged, and checks look at how far the result can be believed."""
