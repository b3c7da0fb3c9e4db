"""Obtaining an image from where a reference says it is: as archives, one per layer."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path

from hutch.errors import HutchError, ImageNotFoundError, ImagePullError
from hutch.images.debootstrap import build_debian
from hutch.images.host import host_image
from hutch.images.oci import LayerBlob, read_layout
from hutch.images.references import Debootstrap, Host, Layout, Registry, Rootfs, Source
from hutch.images.tools import is_unreachable, run_tool
from hutch.models import ImageConfig, PullProgress

_ARCHIVE = "archive.tar"
_LAYOUT = "layout"
_LOOK_S = 0.3
_ELSEWHERE = (
    "pulling needs a network; `hutch image ls` lists what is here already, and debootstrap:, oci:, "
    "docker-archive:, rootfs: and host are other sources"
)


@dataclass(frozen=True, slots=True)
class Archive:
    """One layer's archive; its digests, where the source says them, are to be verified."""

    path: Path
    size: int
    digest: str = ""
    diff_id: str = ""


@dataclass(frozen=True, slots=True)
class Obtained:
    """An image as its source has it; layers lowest first."""

    archives: tuple[Archive, ...]
    config: ImageConfig


class Sources:
    """Where images come from.

    Args:
        insecure_registries: `host:port` that may be used without TLS, besides loopback.
    """

    def __init__(self, insecure_registries: Collection[str]) -> None:
        self._insecure = insecure_registries

    async def obtain(
        self, source: Source, workspace: Path, progress: Callable[[PullProgress], None]
    ) -> Obtained:
        """Bring an image into `workspace`, an empty directory of the caller's.

        Raises:
            ImagePullError: the source failed.
            ImageNotFoundError: it has no such image.
            ImageVerificationError: what it has is corrupt.
        """
        match source:
            case Registry(name, host):
                progress(PullProgress("downloading", name))
                layout = await self._copy(f"docker://{name}", workspace, host, progress)
                return _of_layout(layout)
            case Layout("oci", path, tag):
                if not (path / "index.json").is_file():
                    raise ImageNotFoundError(f"oci:{path}", hint="it is no OCI image layout")
                return _of_layout(path, tag)
            case Layout(transport, path, tag):
                if not path.is_file():
                    raise ImageNotFoundError(f"{transport}:{path}", hint="there is no such file")
                name = f"{transport}:{path.resolve()}{':' + tag if tag else ''}"
                return _of_layout(await self._copy(name, workspace, "", progress))
            case Rootfs(path):
                return await _of_rootfs(path, workspace)
            case Debootstrap():
                archive = workspace / _ARCHIVE
                config = await build_debian(source, archive, progress)
                return Obtained((Archive(archive, archive.stat().st_size),), config)
            case Host():
                archive = workspace / _ARCHIVE
                config = await asyncio.to_thread(host_image, archive)
                return Obtained((Archive(archive, archive.stat().st_size),), config)

    async def _copy(
        self,
        name: str,
        workspace: Path,
        host: str,
        progress: Callable[[PullProgress], None],
    ) -> Path:
        """Copy an image to an OCI layout with skopeo(1), which verifies what it fetches."""
        layout = workspace / _LAYOUT
        argv = ["skopeo", "--insecure-policy", "copy", "--retry-times", "2"]
        if host and (host in self._insecure or _is_loopback(host)):
            argv.append("--src-tls-verify=false")
        argv += [name, f"oci:{layout}"]

        watching = asyncio.create_task(_watch(layout, name, progress))
        try:
            await run_tool(argv, package="skopeo", on_line=lambda _line: None)
        except ImagePullError as error:
            raise _explained(error, name, host) from error
        finally:
            watching.cancel()
            await asyncio.gather(watching, return_exceptions=True)
        return layout


def _explained(error: ImagePullError, name: str, host: str) -> HutchError:
    """Say in our words what skopeo says of a registry."""
    said = error.message.lower()
    name = name.removeprefix("docker://")
    if host and is_unreachable(error):
        reason = error.message.rpartition(": ")[2]
        problem = f"{name}: the registry {host} cannot be reached: {reason}"
        return ImagePullError(problem, hint=_ELSEWHERE)
    if "manifest unknown" in said or "name unknown" in said:
        return ImageNotFoundError(name, hint=f"the registry {host} has no such image")
    if host and ("denied" in said or "unauthorized" in said):
        hint = f"the registry {host} has no such image, or wants a login: skopeo login {host}"
        return ImageNotFoundError(name, hint=hint)
    return error


def _is_loopback(host: str) -> bool:
    name = host.partition(":")[0]
    return name == "localhost" or name.startswith("127.")


async def _watch(layout: Path, name: str, progress: Callable[[PullProgress], None]) -> None:
    """Tell how much has come: where its output is no terminal skopeo says nothing of that."""
    while True:
        progress(PullProgress("downloading", name, await asyncio.to_thread(_size, layout)))
        await asyncio.sleep(_LOOK_S)


def _size(directory: Path) -> int:
    return sum(path.stat().st_size for path in directory.glob("blobs/sha256/*"))


def _of_layout(layout: Path, tag: str = "") -> Obtained:
    image = read_layout(layout, tag)
    return Obtained(tuple(map(_of_blob, image.layers)), image.config)


def _of_blob(layer: LayerBlob) -> Archive:
    return Archive(layer.path, layer.size, layer.digest, layer.diff_id)


async def _of_rootfs(path: Path, workspace: Path) -> Obtained:
    if path.is_file():
        return Obtained((Archive(path, path.stat().st_size),), ImageConfig())
    if not path.is_dir():
        raise ImageNotFoundError(f"rootfs:{path}", hint="there is no such file or directory")
    archive = workspace / _ARCHIVE
    argv = ["tar", "--create", "--file", str(archive), "--one-file-system", "--numeric-owner"]
    argv += ["--xattrs", "--xattrs-include=user.*", "--format=posix", "--sparse"]
    await run_tool(
        [*argv, "--directory", str(path), "."], package="tar", on_line=lambda _line: None
    )
    return Obtained((Archive(archive, archive.stat().st_size),), ImageConfig())
