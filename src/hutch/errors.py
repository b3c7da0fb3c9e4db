"""Every error Hutch raises: one tree, one class per decision a caller can take.

::

    HutchError
    ├── InvalidRequestError          the request is wrong; `field` names the offender
    │   └── SettingsError            a setting is unknown or has a bad value
    ├── NotFoundError                `kind` and `name` say what is missing
    │   ├── SandboxNotFoundError
    │   ├── CommandNotFoundError
    │   └── ImageNotFoundError
    ├── ConflictError                the request contradicts what exists
    │   ├── InvalidStateError        the sandbox is not in a state that allows this
    │   ├── IdempotencyError         the key was used for a different request
    │   └── InUseError               something still uses what was to be removed
    ├── LimitReachedError            a configured maximum is reached; retry later or raise it
    ├── UnsupportedError             this host or driver cannot do it; `capability` names what
    ├── IsolationError               a layer of isolation could not be applied; `layer` names it
    ├── SandboxUnavailableError      the sandbox died or was destroyed while it was being used
    ├── OperationTimeoutError        a wait that the caller bounded ran out (also TimeoutError)
    ├── ImageError                   an image could not be obtained
    │   ├── ImagePullError           the source failed: network, registry, builder
    │   └── ImageVerificationError   content is corrupt, hostile or not what its digest says
    ├── StateError                   the data directory's records cannot be used
    └── FileError                    a file operation failed; `path` is the path as given
        ├── FileMissingError         also FileNotFoundError
        ├── FileIsDirectoryError     also IsADirectoryError
        ├── FileNotDirectoryError    also NotADirectoryError
        ├── FileAccessError          also PermissionError
        ├── FileConflictError        also FileExistsError
        ├── DirectoryNotEmptyError
        ├── FileTooLargeError
        ├── NotRegularFileError      a FIFO, socket or device where a regular file is needed
        ├── InvalidPathError         also ValueError: NUL, over-long, or outside what can be served
        └── NoSpaceError             the sandbox's disk or inode limit, or the host's disk, is full

`code` is stable: clients and logs may match on it; the message is for people and may change.
"A command failed" is never an exception: it is data in an `ExecResult`.
"""

from __future__ import annotations

from typing import ClassVar


class HutchError(Exception):
    """Base of every error Hutch raises.

    `hint`, when not empty, is one sentence saying what to do next.
    """

    code: ClassVar[str] = "error"

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class InvalidRequestError(HutchError):
    """The request is wrong; `field` is the name of the offending field."""

    code = "invalid_request"

    def __init__(self, field: str, problem: str, *, hint: str = "") -> None:
        super().__init__(f"{field}: {problem}", hint=hint)
        self.field = field
        self.problem = problem


class SettingsError(InvalidRequestError):
    """A setting is unknown or has a bad value."""

    code = "invalid_setting"


class NotFoundError(HutchError):
    """What was named does not exist."""

    code = "not_found"
    kind: ClassVar[str] = "object"

    def __init__(self, name: str, *, hint: str = "") -> None:
        super().__init__(f"no such {self.kind}: {name}", hint=hint)
        self.name = name


class SandboxNotFoundError(NotFoundError):
    """No sandbox has that id."""

    code = "sandbox_not_found"
    kind = "sandbox"


class CommandNotFoundError(NotFoundError):
    """The sandbox has no detached command with that id."""

    code = "command_not_found"
    kind = "command"


class ImageNotFoundError(NotFoundError):
    """The image is not in the store, or its source does not have it."""

    code = "image_not_found"
    kind = "image"


class ConflictError(HutchError):
    """The request contradicts what exists."""

    code = "conflict"


class InvalidStateError(ConflictError):
    """The sandbox is not in a state that allows this.

    `status` is what it is; `wanted` is what the operation needs or would make it.
    """

    code = "invalid_state"

    def __init__(self, sandbox_id: str, status: str, wanted: str, *, hint: str = "") -> None:
        super().__init__(f"sandbox {sandbox_id} is {status}, not {wanted}", hint=hint)
        self.sandbox_id = sandbox_id
        self.status = status
        self.wanted = wanted


class IdempotencyError(ConflictError):
    """The idempotency key was first used for a different request."""

    code = "idempotency_conflict"


class InUseError(ConflictError):
    """Something still uses what was to be removed."""

    code = "in_use"


class LimitReachedError(HutchError):
    """A configured maximum is reached."""

    code = "limit_reached"


class UnsupportedError(HutchError):
    """This host or driver lacks `capability`; nothing was created."""

    code = "unsupported"

    def __init__(self, capability: str, reason: str, *, hint: str = "") -> None:
        super().__init__(f"{capability} is not available: {reason}", hint=hint)
        self.capability = capability


class IsolationError(HutchError):
    """A layer of isolation could not be applied, so the sandbox was not created.

    `layer` is the layer's name as docs/security.md lists it; `errno` is the kernel's answer, 0
    where there is none.
    """

    code = "isolation_failed"

    def __init__(self, layer: str, problem: str, *, errno: int = 0, hint: str = "") -> None:
        super().__init__(f"{layer}: {problem}", hint=hint)
        self.layer = layer
        self.errno = errno


class SandboxUnavailableError(HutchError):
    """The sandbox died or was destroyed while it was being used."""

    code = "sandbox_unavailable"

    def __init__(self, sandbox_id: str, reason: str, *, hint: str = "") -> None:
        super().__init__(f"sandbox {sandbox_id} is gone: {reason}", hint=hint)
        self.sandbox_id = sandbox_id
        self.reason = reason


class OperationTimeoutError(HutchError, TimeoutError):
    """A wait that the caller bounded ran out; what was waited for goes on."""

    code = "operation_timeout"


class ImageError(HutchError):
    """An image could not be obtained; the store is as it was before."""

    code = "image_error"


class ImagePullError(ImageError):
    """The source failed: network, registry, builder."""

    code = "image_pull_failed"


class ImageVerificationError(ImageError):
    """Content is corrupt, hostile, or not what its digest says."""

    code = "image_invalid"


class StateError(HutchError):
    """The data directory's records cannot be used: corrupt, or written by a newer version."""

    code = "state_error"


class FileError(HutchError):
    """A file operation failed; `path` is the path as the caller gave it."""

    code = "file_error"
    problem: ClassVar[str] = "file operation failed"

    def __init__(self, path: str, problem: str = "", *, hint: str = "") -> None:
        super().__init__(f"{path!r}: {problem or self.problem}", hint=hint)
        self.path = path


class FileMissingError(FileError, FileNotFoundError):
    """There is no such file."""

    code = "not_found"
    problem = "no such file or directory"


class FileIsDirectoryError(FileError, IsADirectoryError):
    """A file was needed and a directory is there."""

    code = "is_directory"
    problem = "is a directory"


class FileNotDirectoryError(FileError, NotADirectoryError):
    """A directory was needed and something else is there."""

    code = "not_directory"
    problem = "is not a directory"


class FileAccessError(FileError, PermissionError):
    """The sandbox's user may not do this."""

    code = "permission_denied"
    problem = "permission denied"


class FileConflictError(FileError, FileExistsError):
    """It exists already."""

    code = "exists"
    problem = "exists already"


class DirectoryNotEmptyError(FileError):
    """The directory has entries and removal was not recursive."""

    code = "not_empty"
    problem = "directory is not empty"


class FileTooLargeError(FileError):
    """The file is larger than the caller's or the operator's cap."""

    code = "too_large"
    problem = "file is too large"


class NotRegularFileError(FileError):
    """A FIFO, socket or device where a regular file is needed."""

    code = "not_regular_file"
    problem = "is not a regular file"


class InvalidPathError(FileError, ValueError):
    """The path holds a NUL, is too long, loops, or leads where files are not served from."""

    code = "invalid_path"
    problem = "invalid path"


class NoSpaceError(FileError):
    """The sandbox's disk or inode limit, or the host's disk, is full."""

    code = "no_space"
    problem = "no space left"
