"""Other libraries' attacks under robustkd's contract."""
