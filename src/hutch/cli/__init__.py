"""The command line: `hutch`."""
