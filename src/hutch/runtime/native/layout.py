"""Where everything of a sandbox is on the host: one directory, so that nothing can be forgotten.

::

    sandboxes/                      0700
    └── ID/                         0700
        ├── rw/upper  rw/work       the overlay's writable layer; uids as in the sandbox
        ├── disk                    instead of it, a filesystem that holds both: a disk limit
        ├── init.sock               where hutch-init listens
        ├── status                  what hutch-init says of its own end
        └── commands/CID/           a detached command: meta.json log index exit control.sock

Sockets are reached through a descriptor of `sandboxes/`, so that paths stay short of the 108
bytes a unix socket's address has, however deep the data directory is.
"""

from __future__ import annotations

import errno
import os
from pathlib import Path

from hutch.linux.disk import make_disk
from hutch.linux.tree import remove_tree


class Layout:
    """The directories of one data directory's sandboxes."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._root_fd = -1

    def open(self) -> None:
        """Make the root if need be, and hold it."""
        self.root.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._root_fd = os.open(self.root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)

    def close(self) -> None:
        """Let it go. Idempotent."""
        if self._root_fd >= 0:
            os.close(self._root_fd)
            self._root_fd = -1

    def sandbox(self, sandbox_id: str) -> Path:
        """The sandbox's own directory."""
        return self.root / sandbox_id

    def rw(self, sandbox_id: str) -> Path:
        """Its writable layer's directory."""
        return self.root / sandbox_id / "rw"

    def disk(self, sandbox_id: str) -> Path:
        """The filesystem that its writable layer is in, if its disk is limited."""
        return self.root / sandbox_id / "disk"

    def status(self, sandbox_id: str) -> Path:
        """What its init says of its own end."""
        return self.root / sandbox_id / "status"

    def commands(self, sandbox_id: str) -> Path:
        """Its detached commands."""
        return self.root / sandbox_id / "commands"

    def init_socket(self, sandbox_id: str) -> str:
        """A short path of its init's socket."""
        return f"/proc/self/fd/{self._root_fd}/{sandbox_id}/init.sock"

    def control_socket(self, sandbox_id: str, command_id: str) -> str:
        """A short path of a detached command's socket."""
        return f"/proc/self/fd/{self._root_fd}/{sandbox_id}/commands/{command_id}/control.sock"

    def make(self, sandbox_id: str, *, disk_limit: int | None) -> None:
        """Make an empty sandbox directory.

        Raises:
            FileExistsError: there is one.
            IsolationError: the disk limit could not be set up.
        """
        top = self.sandbox(sandbox_id)
        top.mkdir(mode=0o700)
        if disk_limit is not None:
            make_disk(self.disk(sandbox_id), disk_limit)
            return
        (top / "rw").mkdir(mode=0o700)
        (top / "rw/work").mkdir(mode=0o700)
        upper = top / "rw/upper"
        upper.mkdir()
        upper.chmod(0o755)  # the sandbox's root directory; the umask is the engine's

    def remove(self, sandbox_id: str) -> None:
        """Remove everything of a sandbox. Idempotent, also side by side with another engine's."""
        while True:
            try:
                return remove_tree(self._root_fd, sandbox_id)
            except OSError as error:
                # The other one was quicker with some of it, or just starting the sandbox.
                if error.errno not in {errno.ENOENT, errno.ENOTEMPTY}:
                    raise

    def remove_command(self, sandbox_id: str, command_id: str) -> None:
        """Remove what is kept of a detached command. Idempotent."""
        remove_tree(self._root_fd, f"{sandbox_id}/commands/{command_id}")

    def list(self) -> list[str]:
        """The sandboxes there are."""
        return sorted(entry.name for entry in self.root.iterdir())
