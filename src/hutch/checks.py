"""What a caller's values must be: each check refuses a bad one, naming its field."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from hutch.errors import InvalidRequestError

MAX_PATH_BYTES = 4095
"""PATH_MAX less its NUL: limits.h."""
MAX_SECONDS = 10**9
"""Some thirty years: no duration is longer."""
MAX_PIDS = 4 * 1024**2
"""PID_MAX_LIMIT of the kernel: proc(5), pid_max."""
MAX_ENTRIES = 4096
"""How many environment variables, labels or arguments-like items one request may carry."""

MAX_LABELS = 64
MAX_LABEL_CHARACTERS = 1024

_ENV_NAME = re.compile(r"[^=\0]+")
_LABEL_NAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._/-]{0,126}[A-Za-z0-9])?")
_USER = re.compile(
    r"([a-zA-Z_][a-zA-Z0-9_.-]{0,31}|\d{1,10})(:([a-zA-Z_][a-zA-Z0-9_.-]{0,31}|\d{1,10}))?"
)


def check_text(name: str, value: object, *, empty: bool = False, nul: bool = False) -> None:
    """Refuse what is no string that the kernel could take.

    Raises:
        InvalidRequestError: names the field.
    """
    if not isinstance(value, str):
        raise InvalidRequestError(name, f"must be a string, not {type(value).__name__}")
    if "\0" in value and not nul:
        raise InvalidRequestError(name, "must not contain a NUL")
    try:
        value.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError as error:
        raise InvalidRequestError(name, "has a character that is no text (a surrogate)") from error
    if not value and not empty:
        raise InvalidRequestError(name, "must not be empty")


def check_path(name: str, value: object) -> None:
    """Refuse what is no absolute path.

    Raises:
        InvalidRequestError: names the field.
    """
    check_text(name, value)
    assert isinstance(value, str)
    if not value.startswith("/"):
        raise InvalidRequestError(name, f"must be an absolute path, not {value!r}")
    if len(value.encode("utf-8", "surrogateescape")) > MAX_PATH_BYTES:
        raise InvalidRequestError(name, f"must not be longer than {MAX_PATH_BYTES} bytes")


def check_user(name: str, value: object) -> None:
    """Refuse what names no user.

    Raises:
        InvalidRequestError: names the field.
    """
    check_text(name, value)
    assert isinstance(value, str)
    if not _USER.fullmatch(value):
        raise InvalidRequestError(name, f"must be NAME, UID, NAME:GROUP or UID:GID, not {value!r}")


def check_env(name: str, value: object) -> None:
    """Refuse what is no environment.

    Raises:
        InvalidRequestError: names the field.
    """
    if not isinstance(value, Mapping):
        raise InvalidRequestError(name, f"must be a mapping, not {type(value).__name__}")
    if len(value) > MAX_ENTRIES:
        raise InvalidRequestError(name, f"must not have more than {MAX_ENTRIES} entries")
    for key, text in value.items():
        if not isinstance(key, str) or not _ENV_NAME.fullmatch(key):
            raise InvalidRequestError(name, f"has a bad name: {key!r}")
        check_text(f"{name}[{key!r}]", text, empty=True)


def check_argv(name: str, value: object) -> tuple[str, ...]:
    """Return a program and its arguments; refuse what is no such thing.

    Raises:
        InvalidRequestError: names the field.
    """
    if isinstance(value, str | bytes) or not isinstance(value, Sequence):
        raise InvalidRequestError(
            name, f"must be a sequence of strings, not {type(value).__name__}"
        )
    for index, argument in enumerate(value):
        check_text(f"{name}[{index}]", argument, empty=index > 0)
    return tuple(value)


def check_seconds(name: str, value: object, *, zero: bool = False) -> None:
    """Refuse what is not a finite, positive (or, with `zero`, non-negative) number of seconds.

    Raises:
        InvalidRequestError: names the field.
    """
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise InvalidRequestError(name, f"must be a number of seconds, not {type(value).__name__}")
    if not 0 <= value <= MAX_SECONDS or (value == 0 and not zero):
        raise InvalidRequestError(
            name, f"must be a positive number of seconds up to {MAX_SECONDS}, not {shown(value)}"
        )


def check_count(name: str, value: object, minimum: int, maximum: int = 2**63 - 1) -> None:
    """Refuse what is no whole number from `minimum` to `maximum`.

    Raises:
        InvalidRequestError: names the field.
    """
    if isinstance(value, bool) or not isinstance(value, int):
        raise InvalidRequestError(name, f"must be a whole number, not {type(value).__name__}")
    if value < minimum:
        raise InvalidRequestError(name, f"must be at least {minimum}, not {shown(value)}")
    if value > maximum:
        raise InvalidRequestError(name, f"must be at most {maximum}, not {shown(value)}")


def shown(value: float) -> str:
    """A number for a message; one of thousands of digits only by its size."""
    return str(value) if -(10**20) < value < 10**20 else "a number beyond all bounds"


def check_labels(name: str, value: object) -> None:
    """Refuse what is no set of labels.

    Raises:
        InvalidRequestError: names the field.
    """
    if not isinstance(value, Mapping):
        raise InvalidRequestError(name, f"must be a mapping, not {type(value).__name__}")
    if len(value) > MAX_LABELS:
        raise InvalidRequestError(name, f"must not have more than {MAX_LABELS} entries")
    for key, text in value.items():
        if not isinstance(key, str) or not _LABEL_NAME.fullmatch(key):
            raise InvalidRequestError(name, f"has a bad name: {key!r}")
        check_text(f"{name}[{key!r}]", text, empty=True)
        if len(text) > MAX_LABEL_CHARACTERS:
            raise InvalidRequestError(
                f"{name}[{key!r}]", f"must not be longer than {MAX_LABEL_CHARACTERS} characters"
            )
