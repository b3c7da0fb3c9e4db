"""Settings: defaults < file < environment < arguments. An unknown key is an error.

The file is TOML: the path in `HUTCH_CONFIG`, else `~/.config/hutch/config.toml`, else
`/etc/hutch/config.toml`. A setting `some_name` is `HUTCH_SOME_NAME` in the environment. This is
the only module that reads the environment.
"""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from types import MappingProxyType, UnionType
from typing import Annotated, get_args, get_origin, get_type_hints

from hutch.errors import SettingsError

_PREFIX = "HUTCH_"
_CONFIG_FILE = "HUTCH_CONFIG"
_SIZE = re.compile(r"(\d+)([KMGT]?)")
_UNITS = {"": 1, "K": 1024, "M": 1024**2, "G": 1024**3, "T": 1024**4}
_CHOICES: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {"log_level": ("debug", "info", "warning", "error"), "log_format": ("text", "json")}
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """How an engine behaves. Each field carries its meaning and unit: `describe()`."""

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
    max_sandboxes: Annotated[int, "How many sandboxes may exist at once."] = 1000
    default_cpu: Annotated[float | None, "Cores of a sandbox that asks for none."] = None
    default_memory: Annotated[int | None, "Bytes of memory of a sandbox that asks for none."] = None
    default_pid_limit: Annotated[
        int | None,
        "Processes and threads of a sandbox that asks for no limit, where the host can limit them.",
    ] = 1024
    default_timeout: Annotated[
        float | None, "Seconds until a sandbox that asks for no timeout is destroyed."
    ] = None
    allow_privilege_escalation: Annotated[
        bool, "Whether a sandbox may ask that sudo and setuid programs work inside."
    ] = True
    stop_grace: Annotated[float, "Seconds from SIGTERM to SIGKILL when a sandbox is stopped."] = 5.0
    exec_grace: Annotated[float, "Seconds from SIGTERM to SIGKILL when a command is ended."] = 2.0
    output_limit: Annotated[
        int, "Bytes of stdout, and of stderr, that exec keeps; the rest is read and dropped."
    ] = 32 * 1024**2
    log_limit: Annotated[int, "Bytes of each stream that a detached command's log keeps."] = (
        64 * 1024**2
    )
    read_limit: Annotated[int, "Bytes that read_file returns at most."] = 256 * 1024**2
    list_limit: Annotated[int, "Entries that list_dir returns at most."] = 100_000
    shm_size: Annotated[int, "Bytes of /dev/shm."] = 64 * 1024**2
    open_files: Annotated[int, "Open files of one process in a sandbox (RLIMIT_NOFILE)."] = 65536
    uid_base: Annotated[int, "First host uid of the ranges given to sandboxes."] = 1_879_048_192
    uid_ranges: Annotated[int, "How many ranges of 65,536 host uids sandboxes may have."] = 32_768
    log_level: Annotated[str, "Least severe log messages that are written."] = "warning"
    log_format: Annotated[str, "How log messages are written: text or json."] = "text"

    def __post_init__(self) -> None:
        object.__setattr__(self, "image_aliases", MappingProxyType(dict(self.image_aliases)))
        for name, choices in _CHOICES.items():
            if getattr(self, name) not in choices:
                raise SettingsError(name, f"must be one of {', '.join(choices)}")
        for item in fields(self):
            value = getattr(self, item.name)
            if isinstance(value, int | float) and not isinstance(value, bool) and value < 0:
                raise SettingsError(item.name, f"must not be negative, not {value}")

    def with_data_dir(self, data_dir: Path) -> Settings:
        """Return these settings with another data directory."""
        return replace(self, data_dir=data_dir)

    def resolved_data_dir(self) -> Path:
        """Return the data directory, or this user's default one when none is set."""
        if self.data_dir is not None:
            return self.data_dir.expanduser().absolute()
        if is_host_root():
            return Path("/var/lib/hutch")
        base = os.environ.get("XDG_DATA_HOME") or "~/.local/share"
        return Path(base).expanduser() / "hutch"


def describe() -> dict[str, tuple[str, object]]:
    """Return each setting's meaning and default value, by name."""
    hints = get_type_hints(Settings, include_extras=True)
    defaults = Settings()
    return {
        item.name: (hints[item.name].__metadata__[0], getattr(defaults, item.name))
        for item in fields(Settings)
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
    kinds = {name: get_args(hint)[0] for name, hint in _hints().items()}
    for name in values:
        if name not in kinds:
            raise SettingsError(name, "is not a setting", hint="docs/configuration.md lists them")
    return Settings(**{name: _convert(name, kinds[name], value) for name, value in values.items()})  # type: ignore[arg-type]  # _convert gives each field's own type


def _hints() -> dict[str, object]:
    return get_type_hints(Settings, include_extras=True)


def _config_file(environment: Mapping[str, str]) -> Path | None:
    named = environment.get(_CONFIG_FILE)
    if named:
        return Path(named)
    home = Path(environment.get("XDG_CONFIG_HOME") or "~/.config").expanduser()
    places = (home / "hutch/config.toml", Path("/etc/hutch/config.toml"))
    return next((place for place in places if place.is_file()), None)


def _from_file(path: Path | None) -> dict[str, object]:
    if path is None:
        return {}
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
        if not key.startswith(_PREFIX) or key == _CONFIG_FILE:
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
    except (TypeError, ValueError) as error:
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
