"""Measuring hutch: `make bench`."""
