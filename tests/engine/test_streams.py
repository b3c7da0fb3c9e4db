"""Streams and detached commands on the native runtime: the suite."""

from hutch.testing.streams import *
