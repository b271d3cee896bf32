"""What is done with the pixels before a network sees them: its constants, by name, and the layer. The former import no torch."""
