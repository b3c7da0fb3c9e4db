"""Settings: defaults < file < environment < arguments; unknown keys and bad values are errors."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hutch import SandboxConfig, Settings, load_settings
from hutch.config import describe, parse_size
from hutch.errors import SettingsError


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "config.toml"
    path.write_text('max_sandboxes = 7\nstop_grace = 3\ndefault_memory = "64M"\n')
    return path


def test_later_sources_win(file: Path) -> None:
    environment = {"HUTCH_CONFIG": str(file), "HUTCH_STOP_GRACE": "4", "HUTCH_EXEC_GRACE": "4"}
    settings = load_settings({"exec_grace": 5.0, "log_level": None}, environment=environment)
    assert settings == Settings(
        max_sandboxes=7, stop_grace=4.0, exec_grace=5.0, default_memory=64 * 1024**2
    )


def test_what_is_unset() -> None:
    assert load_settings(environment={"HUTCH_DEFAULT_PID_LIMIT": "none"}).default_pid_limit is None


def test_an_empty_variable_is_unset(file: Path) -> None:
    environment = {"HUTCH_CONFIG": str(file), "HUTCH_STOP_GRACE": "", "HUTCH_DATA_DIR": ""}
    settings = load_settings(environment=environment)
    assert (settings.stop_grace, settings.data_dir) == (3.0, None)
    with pytest.raises(SettingsError):
        load_settings({"data_dir": ""}, environment={})


def test_every_number_has_bounds() -> None:
    """What no host could do is refused when it is set, not when the first sandbox is made."""
    for name, (_, default) in describe().items():
        if isinstance(default, int | float) and not isinstance(default, bool):
            for absurd in (-1, 2**70):
                with pytest.raises(SettingsError, match=name):
                    load_settings({name: absurd}, environment={})


def test_the_greatest_ranges() -> None:
    settings = load_settings({"uid_base": 65_536, "uid_ranges": 65_534}, environment={})
    assert settings.uid_base + settings.uid_ranges * 65_536 == 2**32 - 65_536


def test_lists_and_tables(tmp_path: Path) -> None:
    path = tmp_path / "config.toml"
    path.write_text('insecure_registries = ["a:1"]\n[image_aliases]\nx = "oci:/x"\n')
    settings = load_settings(environment={}, file=path)
    assert (settings.insecure_registries, settings.image_aliases) == (("a:1",), {"x": "oci:/x"})
    environment = {"HUTCH_INSECURE_REGISTRIES": "b:2,c:3", "HUTCH_IMAGE_ALIASES": "y=oci:/y"}
    settings = load_settings(environment=environment, file=path)
    assert (settings.insecure_registries, settings.image_aliases) == (
        ("b:2", "c:3"),
        {"y": "oci:/y"},
    )


@pytest.mark.parametrize(
    ("environment", "named"),
    [
        ({"HUTCH_MAX_SANDBOXS": "1"}, "HUTCH_MAX_SANDBOXS"),
        ({"HUTCH_MAX_SANDBOXES": "many"}, "max_sandboxes"),
        ({"HUTCH_MAX_SANDBOXES": "-1"}, "max_sandboxes"),
        ({"HUTCH_STOP_GRACE": "soon"}, "stop_grace"),
        ({"HUTCH_LOG_LEVEL": "loud"}, "log_level"),
        ({"HUTCH_ALLOW_PRIVILEGE_ESCALATION": "perhaps"}, "allow_privilege_escalation"),
        ({"HUTCH_CONFIG": "/no/such/file"}, "config file"),
        ({"HUTCH_MAX_SANDBOXES": "0"}, "max_sandboxes"),
        ({"HUTCH_DEFAULT_CPU": "0"}, "default_cpu"),
        ({"HUTCH_DEFAULT_MEMORY": "1K"}, "default_memory"),
        ({"HUTCH_DEFAULT_PID_LIMIT": "1"}, "default_pid_limit"),
        ({"HUTCH_DEFAULT_TIMEOUT": "0"}, "default_timeout"),
        ({"HUTCH_DEFAULT_TIMEOUT": "1e400"}, "default_timeout"),
        ({"HUTCH_STOP_GRACE": "nan"}, "stop_grace"),
        ({"HUTCH_EXEC_GRACE": "inf"}, "exec_grace"),
        ({"HUTCH_OUTPUT_LIMIT": "9999999T"}, "output_limit"),
        ({"HUTCH_SHM_SIZE": "0"}, "shm_size"),  # which tmpfs(5) takes for: no limit
        ({"HUTCH_OPEN_FILES": "63"}, "open_files"),
        ({"HUTCH_UID_BASE": "0"}, "uid_base"),
        ({"HUTCH_UID_BASE": "65535"}, "uid_base"),
        ({"HUTCH_UID_RANGES": "0"}, "uid_ranges"),
        ({"HUTCH_UID_BASE": "65536", "HUTCH_UID_RANGES": "65535"}, "uid_ranges"),
    ],
)
def test_errors_name_the_setting(environment: dict[str, str], named: str) -> None:
    with pytest.raises(SettingsError) as error:
        load_settings(environment=environment)
    assert error.value.field == named


@pytest.mark.parametrize(
    "text",
    [
        "exec_grace = 1" + "0" * 400,
        "data_dir = ''",
        "typo = 1",
        "not toml",
        "max_sandboxes = [1]",
        "data_dir = 1.5",
    ],
)
def test_a_bad_file(tmp_path: Path, text: str) -> None:
    path = tmp_path / "config.toml"
    path.write_text(text)
    with pytest.raises(SettingsError):
        load_settings(environment={}, file=path)


@given(st.integers(0, 2**30), st.sampled_from(["", "K", "M", "G", "k", "MiB", "GB", "b"]))
def test_sizes(number: int, unit: str) -> None:
    factor = {"": 1, "B": 1, "K": 2**10, "M": 2**20, "G": 2**30}[unit.upper()[:1]]
    assert parse_size(f"{number}{unit}") == number * factor


def test_secrets_are_in_no_repr() -> None:
    config = SandboxConfig(env={"TOKEN": "s3cr3t"})
    assert "s3cr3t" not in repr(config)
