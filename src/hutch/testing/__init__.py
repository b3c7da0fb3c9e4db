"""What every runtime does, as pytest modules, and what tests of sandboxes need.

The tests of a runtime import the suites, each into a module of its own:

    from hutch.testing.commands import *

and provide the fixtures: `engine` and `sandbox`, a running one of it; `settings`, what `engine` is
made with, which a suite may override; `limits`, which skips a test where the host can set no limits,
after checking that they are refused. The engine knows an image `IMAGE`, a busybox with the users
root and `user`.
"""

IMAGE = "busybox"
