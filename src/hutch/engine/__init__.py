"""The engine: what sandboxes are, whatever makes them."""
