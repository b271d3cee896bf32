"""Caption models: trained on the images' own captions, and distilled with preferences."""
