"""The native runtime: sandboxes made of namespaces, an overlay and hutch-init."""
