"""What the conformance suite asks of plug-ins: one function for each property."""
