"""Suites of behaviour that every driver must show; pytest classes to inherit from."""
