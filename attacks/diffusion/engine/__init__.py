"""What attacks on text-to-image models share: the denoising error, and the search over tokens."""
