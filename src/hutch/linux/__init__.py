"""Linux as the drivers see it: system calls, /proc, control groups, user namespaces."""
