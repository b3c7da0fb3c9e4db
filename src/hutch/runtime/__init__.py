"""Drivers of the runtime contract."""
