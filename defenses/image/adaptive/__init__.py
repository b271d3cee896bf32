"""Networks that hold several: exits, widths, and what each of them is worth."""
