"""What is done in a cell, a module for each kind."""
