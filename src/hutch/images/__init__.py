"""Images: from a reference to unpacked, content-addressed layers."""
