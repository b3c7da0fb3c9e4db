"""Commands on the native runtime: the suite."""

from hutch.testing.commands import *
