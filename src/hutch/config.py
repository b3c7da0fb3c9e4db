"""Settings: defaults < file < environment < arguments. An unknown key is an error.

The file is TOML: the path in `HUTCH_CONFIG`, else `~/.config/hutch/config.toml`, else
`/etc/hutch/config.toml`. A setting `some_name` is `HUTCH_SOME_NAME` in the environment, where an
empty one counts as unset. This is the only module that reads the environment.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field, fields, replace
from functools import cache
from pathlib import Path
from types import MappingProxyType, UnionType
from typing import Annotated, NamedTuple, get_args, get_origin, get_type_hints

from hutch.checks import MAX_PIDS, MAX_SECONDS
from hutch.errors import SettingsError

_PREFIX = "HUTCH_"
_CONFIG_FILE = "HUTCH_CONFIG"
_SIZE = re.compile(r"(\d+)([KMGT]?)")
_UNITS = {"": 1, "K": 1024, "M": 1024**2, "G": 1024**3, "T": 1024**4}
_ID_RANGE = 65_536
"""Host uids of one sandbox; the host's own users have the first range."""
_ID_END = 2**32 - _ID_RANGE
"""Above are the ids that stand for none: user_namespaces(7)."""


@dataclass(frozen=True, slots=True)
class Between:
    """What a number may be; both ends included."""

    least: float
    most: float

    def problem(self, value: float) -> str:
        """Say what is wrong with a value; empty where nothing is."""
        if self.least <= value <= self.most:
            return ""
        return f"must be between {self.least} and {self.most}, not {value}"


@dataclass(frozen=True, slots=True)
class OneOf:
    """What a word may be."""

    words: tuple[str, ...]

    def problem(self, value: object) -> str:
        """Say what is wrong with a value; empty where nothing is."""
        return "" if value in self.words else f"must be one of {', '.join(self.words)}"


_GRACE = Between(0, 86_400)
_BYTES = Between(0, 2**50)


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """How an engine behaves. Each field carries its meaning and unit, and its bounds."""

    data_dir: Annotated[
        Path | None,
        "Where sandboxes, images and records live; by default /var/lib/hutch for root and "
        "~/.local/share/hutch for others.",
    ] = None
    default_image: Annotated[str, "The image of a sandbox that names none."] = "debian"
    image_aliases: Annotated[
        Mapping[str, str], "Short image names and the references they stand for."
    ] = field(default_factory=dict)
    insecure_registries: Annotated[
        tuple[str, ...], "Registries (host:port) that may be used without TLS; loopback always may."
    ] = ()
    max_sandboxes: Annotated[
        int, "How many sandboxes may exist at once.", Between(1, 1_000_000)
    ] = 1000
    default_cpu: Annotated[
        float | None, "Cores of a sandbox that asks for none.", Between(0.01, 4096)
    ] = None
    default_memory: Annotated[
        int | None,
        "Bytes of memory of a sandbox that asks for none.",
        Between(4 * 1024**2, 2**63 - 1),
    ] = None
    default_pid_limit: Annotated[
        int | None,
        "Processes and threads of a sandbox that asks for no limit, where the host can limit them.",
        Between(4, MAX_PIDS),
    ] = 1024
    default_timeout: Annotated[
        float | None,
        "Seconds until a sandbox that asks for no timeout is destroyed.",
        Between(0.001, MAX_SECONDS),
    ] = None
    allow_privilege_escalation: Annotated[
        bool, "Whether a sandbox may ask that sudo and setuid programs work inside."
    ] = True
    stop_grace: Annotated[
        float, "Seconds from SIGTERM to SIGKILL when a sandbox is stopped.", _GRACE
    ] = 5.0
    exec_grace: Annotated[
        float, "Seconds from SIGTERM to SIGKILL when a command is ended.", _GRACE
    ] = 2.0
    output_limit: Annotated[
        int,
        "Bytes of stdout, and of stderr, that exec keeps; the rest is read and dropped.",
        _BYTES,
    ] = 32 * 1024**2
    log_limit: Annotated[
        int, "Bytes of each stream that a detached command's log keeps.", _BYTES
    ] = 64 * 1024**2
    read_limit: Annotated[int, "Bytes that read_file returns at most.", _BYTES] = 256 * 1024**2
    list_limit: Annotated[
        int, "Entries that list_dir returns at most.", Between(1, 100_000_000)
    ] = 100_000
    shm_size: Annotated[int, "Bytes of /dev/shm.", Between(4096, 2**50)] = 64 * 1024**2
    open_files: Annotated[
        int,
        "Files that one process in a sandbox may have open at most: the hard RLIMIT_NOFILE.",
        Between(64, 1_048_576),
    ] = 65536
    uid_base: Annotated[
        int, "First host uid of the ranges given to sandboxes.", Between(_ID_RANGE, _ID_END)
    ] = 1_879_048_192
    uid_ranges: Annotated[
        int,
        "How many ranges of 65,536 host uids sandboxes may have.",
        Between(1, _ID_END // _ID_RANGE),
    ] = 32_768
    log_level: Annotated[
        str,
        "Least severe log messages that the command line writes: debug, info, warning or error.",
        OneOf(("debug", "info", "warning", "error")),
    ] = "error"
    log_format: Annotated[
        str, "How log messages are written: text or json.", OneOf(("text", "json"))
    ] = "text"

    def __post_init__(self) -> None:
        object.__setattr__(self, "image_aliases", MappingProxyType(dict(self.image_aliases)))
        for name, annotation in _annotations().items():
            value = getattr(self, name)
            if value is None or annotation.bounds is None:
                continue
            if problem := annotation.bounds.problem(value):
                raise SettingsError(name, problem)
        if self.uid_base + self.uid_ranges * _ID_RANGE > _ID_END:
            raise SettingsError(
                "uid_ranges",
                f"{self.uid_ranges} ranges from uid_base {self.uid_base} on go beyond {_ID_END}",
            )

    def with_data_dir(self, data_dir: Path) -> Settings:
        """Return these settings with another data directory."""
        return replace(self, data_dir=data_dir)

    def resolved_data_dir(self) -> Path:
        """Return the data directory, or this user's default one when none is set."""
        if self.data_dir is not None:
            return _expand(self.data_dir).absolute()
        if is_host_root():
            return Path("/var/lib/hutch")
        return _expand(Path(os.environ.get("XDG_DATA_HOME") or "~/.local/share")) / "hutch"


def _expand(path: Path) -> Path:
    try:
        return path.expanduser()
    except RuntimeError as error:
        raise SettingsError("data_dir", f"{path}: there is no such home directory") from error


class _Annotation(NamedTuple):
    """What a field's annotation says."""

    kind: object
    meaning: str
    bounds: Between | OneOf | None = None


@cache
def _annotations() -> Mapping[str, _Annotation]:
    hints = get_type_hints(Settings, include_extras=True)
    return {name: _Annotation(*get_args(hint)) for name, hint in hints.items()}


def describe() -> dict[str, tuple[str, object]]:
    """Return each setting's meaning and default value, by name."""
    defaults = Settings()
    return {
        name: (annotation.meaning, getattr(defaults, name))
        for name, annotation in _annotations().items()
    }


def load_settings(
    arguments: Mapping[str, object] | None = None,
    *,
    environment: Mapping[str, str] | None = None,
    file: Path | None = None,
) -> Settings:
    """Merge defaults, the file, the environment and `arguments`, later ones winning.

    Args:
        arguments: settings by name; None values count as not given.
        environment: instead of the process's own.
        file: instead of the one `HUTCH_CONFIG` or the default places name.

    Raises:
        SettingsError: a key is unknown, a value is bad, or the file cannot be read.
    """
    environment = os.environ if environment is None else environment
    values = _from_file(file or _config_file(environment))
    values |= _from_environment(environment)
    values |= {key: value for key, value in (arguments or {}).items() if value is not None}
    known = _annotations()
    for name in values:
        if name not in known:
            raise SettingsError(name, "is not a setting", hint="docs/configuration.md lists them")
    converted = {name: _convert(name, known[name].kind, value) for name, value in values.items()}
    return Settings(**converted)  # type: ignore[arg-type]  # _convert gives each field's own type


def _config_file(environment: Mapping[str, str]) -> Path | None:
    named = environment.get(_CONFIG_FILE)
    if named:
        return Path(named)
    places = [Path("/etc/hutch/config.toml")]
    with suppress(RuntimeError):  # a user without a home
        home = Path(environment.get("XDG_CONFIG_HOME") or "~/.config").expanduser()
        places.insert(0, home / "hutch/config.toml")
    return next((place for place in places if os.path.isfile(place)), None)


def _from_file(path: Path | None) -> dict[str, object]:
    if path is None:
        return {}
    import tomllib

    try:
        return tomllib.loads(path.read_text())
    except OSError as error:
        raise SettingsError("config file", f"cannot be read: {error}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SettingsError("config file", f"{path} is not TOML: {error}") from error


def _from_environment(environment: Mapping[str, str]) -> dict[str, object]:
    known = {_PREFIX + item.name.upper(): item.name for item in fields(Settings)}
    values: dict[str, object] = {}
    for key, text in environment.items():
        if not key.startswith(_PREFIX) or key == _CONFIG_FILE or not text:
            continue
        if key not in known:
            raise SettingsError(key, "is not a setting", hint="docs/configuration.md lists them")
        values[known[key]] = text
    return values


def _convert(name: str, kind: object, value: object) -> object:
    """Return `value`, from TOML, text or an argument, as the setting's type."""
    if isinstance(kind, UnionType):
        if value is None or value == "none":
            return None
        kind = next(part for part in get_args(kind) if part is not type(None))
    try:
        return _convert_to(kind, value)
    except (TypeError, ValueError, OverflowError) as error:
        raise SettingsError(name, str(error)) from error


def _convert_to(kind: object, value: object) -> object:
    if kind is bool:
        return _to_bool(value)
    if kind is int:
        return parse_size(value)
    if kind is float:
        if isinstance(value, bool) or not isinstance(value, int | float | str):
            raise TypeError(f"must be a number, not {value!r}")
        return float(value)
    if kind is Path and isinstance(value, Path | str):
        if value == "":
            raise ValueError("must not be empty")
        return Path(value)
    if kind in {Path, str}:
        if not isinstance(value, str):
            raise TypeError(f"must be text, not {value!r}")
        return value
    if get_origin(kind) is tuple:
        return tuple(value.split(",")) if isinstance(value, str) else tuple(map(str, _items(value)))
    return _to_mapping(value)


def _items(value: object) -> list[object]:
    if not isinstance(value, list | tuple):
        raise TypeError(f"must be a list, not {value!r}")
    return list(value)


def _to_bool(value: object) -> bool:
    words = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}
    if isinstance(value, bool):
        return value
    if isinstance(value, str) and value.lower() in words:
        return words[value.lower()]
    raise TypeError(f"must be true or false, not {value!r}")


def parse_size(value: object) -> int:
    """Return a whole number, also from text with a binary unit: `512M` is 536870912.

    Raises:
        ValueError: it is not one.
    """
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    match = (
        _SIZE.fullmatch(value.strip().upper().removesuffix("IB").removesuffix("B"))
        if (isinstance(value, str))
        else None
    )
    if match is None:
        raise ValueError(f"must be a whole number, with K, M, G or T if wanted, not {value!r}")
    return int(match[1]) * _UNITS[match[2]]


def _to_mapping(value: object) -> Mapping[str, str]:
    if isinstance(value, str):
        value = dict(pair.partition("=")[::2] for pair in value.split(",") if pair)
    if not isinstance(value, Mapping):
        raise TypeError(f"must be a table, not {value!r}")
    return {str(key): str(text) for key, text in value.items()}


def is_host_root() -> bool:
    """Whether this process is root of the host, and not of a user namespace of its own."""
    if os.geteuid() != 0:
        return False
    return Path("/proc/self/uid_map").read_text().split() == ["0", "0", "4294967295"]
