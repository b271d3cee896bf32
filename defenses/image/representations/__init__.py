"""Students that learn features of a teacher, or of masked images, before they learn labels."""
