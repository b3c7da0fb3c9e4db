"""Drivers of the state store contract."""
