"""The local image store.

::

    layers/DIGEST/       unpacked layers, by the digest of their tar archive; never changed
    skeleton-VERSION/    the layer under every image
    images/ names/       records (hutch.images.records)
    work/                what is being obtained; nothing else refers to it
    locks/               one file per reference being obtained, and `store`

A layer is unpacked in `work`, written to disk, and renamed into place; then its image's record is
written; so a record only names layers that are whole. Whoever obtains an image holds `store`
shared; whoever removes layers, or what an interrupted process left in `work`, holds it alone.
"""

from __future__ import annotations

import asyncio
import errno
import json
import os
from collections.abc import AsyncIterator, Callable, Collection, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from tempfile import mkdtemp
from typing import TYPE_CHECKING

from hutch.abc.images import ImageStore, ProgressCallback
from hutch.errors import (
    HutchError,
    ImageError,
    ImageNotFoundError,
    ImageVerificationError,
    InUseError,
    InvalidRequestError,
)
from hutch.images.locks import locked, locked_if_free
from hutch.images.names import DEFAULT_ALIASES, absolute
from hutch.images.records import ImageRecord, Records
from hutch.images.skeleton import VERSION, make_skeleton
from hutch.linux.syscalls import syncfs
from hutch.linux.tree import disk_usage, remove_tree
from hutch.models import Image, PullProgress
from hutch.wire import to_json

if TYPE_CHECKING:
    from hutch.images.sources import Archive, Obtained

_LEAST_ID_PREFIX = 6


class LocalImageStore(ImageStore):
    """Images in a directory of this host, shared by any number of processes.

    Args:
        root: the directory; made when it is first needed.
        aliases: short names and the references they stand for, besides the built-in ones.
        insecure_registries: `host:port` that may be used without TLS, besides loopback.
    """

    def __init__(
        self, root: Path, *, aliases: Mapping[str, str], insecure_registries: Collection[str]
    ) -> None:
        self._root = root
        self._aliases = {**DEFAULT_ALIASES, **aliases}
        self._records = Records(root)
        self._known: dict[str, tuple[int, Image]] = {}
        """Images by name, with when the name was written: what each creation asks for."""
        self._insecure = insecure_registries
        self._skeleton = root / f"skeleton-{VERSION}"

    # -- looking up ---------------------------------------------------------------------------

    async def get(self, reference: str) -> Image:
        reference = self._checked(reference)
        written = self._records.written(reference)
        if written is not None and (known := self._known.get(reference)) and known[0] == written:
            return known[1]
        image = await asyncio.to_thread(self._find, reference)
        if written is not None:
            self._known[reference] = written, image
        return image

    def _find(self, reference: str) -> Image:
        record = self._record(reference)
        if record is None:
            raise ImageNotFoundError(reference, hint=f"hutch image pull {reference}")
        return self._image(record, self._records.names())

    def _record(self, reference: str) -> ImageRecord | None:
        image_id = self._records.id_of(reference)
        if image_id is not None:
            return self._records.image(image_id)
        prefix = reference.removeprefix("sha256:")
        if len(prefix) < _LEAST_ID_PREFIX or not set(prefix) <= set("0123456789abcdef"):
            return None
        found = [
            record
            for record in self._records.images()
            if record.id.removeprefix("sha256:").startswith(prefix)
        ]
        if len(found) > 1:
            raise InvalidRequestError("image", f"{reference} begins {len(found)} ids")
        return found[0] if found else None

    def _checked(self, reference: str) -> str:
        """Refuse what could be neither a name, an id nor a source; return it for all places."""
        reference = absolute(reference)
        try:
            size = len(reference.encode())
        except UnicodeEncodeError:  # bytes that are no text
            size = 0
        if not 0 < size <= 4096 or "\0" in reference:
            raise InvalidRequestError("image", f"{reference[:80]!r} is not an image reference")
        return reference

    def _image(self, record: ImageRecord, names: Mapping[str, str]) -> Image:
        return Image(
            id=record.id,
            names=tuple(name for name, image_id in names.items() if image_id == record.id),
            layers=(self._skeleton, *(self._layer(diff_id) for diff_id in record.layers)),
            config=record.config,
            size=record.size,
            created_at=record.created_at,
            source=record.source,
        )

    def _layer(self, diff_id: str) -> Path:
        return self._root / "layers" / diff_id.removeprefix("sha256:")

    async def list(self) -> list[Image]:
        return [*await asyncio.to_thread(self._all)]

    def _all(self) -> tuple[Image, ...]:
        names = self._records.names()
        images = (self._image(record, names) for record in self._records.images())
        return tuple(sorted(images, key=lambda image: image.names or (image.id,)))

    # -- obtaining ----------------------------------------------------------------------------

    async def ensure(self, reference: str, *, progress: ProgressCallback | None = None) -> Image:
        try:
            return await self.get(reference)
        except ImageNotFoundError:
            reference = self._checked(reference)
            return await self._obtain(reference, reference, progress or _silent, anew=False)

    async def pull(
        self, reference: str, *, name: str | None = None, progress: ProgressCallback | None = None
    ) -> Image:
        reference = self._checked(reference)
        name = self._checked(name if name is not None else reference)
        return await self._obtain(reference, name, progress or _silent, anew=True)

    async def _obtain(
        self, reference: str, name: str, progress: ProgressCallback, *, anew: bool
    ) -> Image:
        from hutch.images.references import parse_reference  # what few calls need comes late
        from hutch.images.sources import Sources

        source = absolute(self._aliases.get(reference, reference))
        parsed = parse_reference(source)
        with _translated(source):
            await asyncio.to_thread(self._open)
            lock = self._root / "locks" / sha256(source.encode()).hexdigest()[:32]
            asked_at = datetime.now(UTC)
            async with locked(lock):
                record = await asyncio.to_thread(self._record, name)
                if record is not None and (not anew or record.created_at > asked_at):
                    return await self.get(name)  # somebody else obtained it while we waited
                async with self._workspace() as workspace:
                    progress(PullProgress("resolving", source))
                    obtained = await Sources(self._insecure).obtain(parsed, workspace, progress)
                    record = await self._unpack_all(obtained, workspace, source, progress)
                    await asyncio.to_thread(self._publish, record, name)
        progress(PullProgress("done", name))
        return await self.get(name)

    def _open(self) -> None:
        for name in ("layers", "work", "locks"):
            (self._root / name).mkdir(mode=0o700, parents=True, exist_ok=True)
        self._records.open()

    @asynccontextmanager
    async def _workspace(self) -> AsyncIterator[Path]:
        """A directory to obtain an image in, which goes away whatever happens."""
        store = self._root / "locks" / "store"
        async with locked_if_free(store) as alone:
            if alone:
                await asyncio.to_thread(self._sweep)
        async with locked(store, shared=True):
            workspace = Path(await asyncio.to_thread(mkdtemp, dir=self._root / "work"))
            try:
                await asyncio.to_thread(self._make_skeleton, workspace)
                yield workspace
            finally:
                await asyncio.shield(asyncio.to_thread(_remove, workspace))

    def _make_skeleton(self, workspace: Path) -> None:
        if self._skeleton.is_dir():
            return
        made = workspace / "skeleton"
        made.mkdir()
        make_skeleton(made)
        _move(made, self._skeleton)

    async def _unpack_all(
        self, obtained: Obtained, workspace: Path, source: str, progress: ProgressCallback
    ) -> ImageRecord:
        total = sum(archive.size for archive in obtained.archives)
        before, size = 0, 0
        layers: tuple[str, ...] = ()
        for number, archive in enumerate(obtained.archives, 1):
            what = f"layer {number} of {len(obtained.archives)}"

            def on_read(count: int, before: int = before, what: str = what) -> None:
                progress(PullProgress("unpacking", what, before + count, total))

            on_read(0)
            diff_id = archive.diff_id
            if not diff_id or not self._layer(diff_id).is_dir():
                diff_id = await self._unpack(archive, workspace / f"layer-{number}", what, on_read)
            layers += (diff_id,)
            size += await asyncio.to_thread(disk_usage, self._layer(diff_id))
            before += archive.size
        identity = json.dumps([layers, to_json(obtained.config)], sort_keys=True)
        return ImageRecord(
            id=f"sha256:{sha256(identity.encode()).hexdigest()}",
            layers=layers,
            config=obtained.config,
            size=size,
            created_at=datetime.now(UTC),
            source=source,
        )

    async def _unpack(
        self, archive: Archive, target: Path, what: str, on_read: Callable[[int], None]
    ) -> str:
        from hutch.images.layers import open_archive, unpack_layer

        await asyncio.to_thread(target.mkdir, mode=0o755)
        fd = await asyncio.to_thread(open_archive, archive.path)
        try:
            unpacked = await unpack_layer(fd, target, what=what, on_read=on_read)
        finally:
            os.close(fd)
        for kind, promised, actual in (
            ("digest", archive.digest, unpacked.digest),
            ("diff_id", archive.diff_id, unpacked.diff_id),
        ):
            if promised and promised != actual:
                raise ImageVerificationError(
                    f"{what} has the {kind} {actual}, where the image says {promised}"
                )
        await asyncio.to_thread(_move, target, self._layer(unpacked.diff_id))
        return unpacked.diff_id

    def _publish(self, record: ImageRecord, name: str) -> None:
        known = self._records.image(record.id)
        self._records.put(replace(record, source=known.source) if known else record)
        self._records.name(name, record.id)

    # -- removing -----------------------------------------------------------------------------

    async def remove(self, reference: str, *, in_use: Collection[str] = ()) -> None:
        reference = self._checked(reference)
        await asyncio.to_thread(self._unname, reference, in_use)
        async with locked_if_free(self._root / "locks" / "store") as alone:
            if alone:  # else the layers stay until the next prune
                await asyncio.to_thread(self._collect)

    def _unname(self, reference: str, in_use: Collection[str]) -> None:
        record = self._record(reference)
        if record is None:
            raise ImageNotFoundError(reference)
        names = [name for name, image_id in self._records.names().items() if image_id == record.id]
        leaving = [reference] if reference in names else names
        if set(leaving) == set(names):
            if record.id in in_use:
                raise InUseError(f"the image {reference} is used by a sandbox")
            self._records.drop(record.id)
        for name in leaving:
            self._records.unname(name)

    async def prune(self, *, in_use: Collection[str] = ()) -> int:
        await asyncio.to_thread(self._open)
        async with locked(self._root / "locks" / "store"):
            return await asyncio.to_thread(self._prune, in_use)

    def _prune(self, in_use: Collection[str]) -> int:
        named = set(self._records.names().values())
        for record in self._records.images():
            if record.id not in named and record.id not in in_use:
                self._records.drop(record.id)
        return self._sweep() + self._collect()

    def _collect(self) -> int:
        """Remove the layers that no image has.."""
        needed = {
            diff_id.removeprefix("sha256:")
            for record in self._records.images()
            for diff_id in record.layers
        }
        layers = self._root / "layers"
        unneeded = [path for path in layers.iterdir() if path.name not in needed]
        return sum(map(_remove, unneeded))

    def _sweep(self) -> int:
        """Remove what interrupted processes left; nobody else is at work now."""
        return sum(map(_remove, (self._root / "work").iterdir()))


def _silent(_progress: PullProgress) -> None:
    """For a caller that does not want to know."""


@contextmanager
def _translated(source: str) -> Iterator[None]:
    """Turn what this host could not do into an ImageError."""
    try:
        yield
    except HutchError:
        raise
    except OSError as error:
        where = f": {error.filename}" if error.filename else ""
        raise ImageError(f"{source} could not be obtained: {error.strerror}{where}") from error


def _move(made: Path, place: Path) -> None:
    """Put a finished directory in its place, durably, unless the same one is there already."""
    fd = os.open(made, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        syncfs(fd)
    finally:
        os.close(fd)
    try:
        made.rename(place)
    except OSError as error:
        if not place.is_dir():
            raise ImageError(f"{place.name} could not be stored: {error.strerror}") from error


def _remove(path: Path) -> int:
    """Remove a directory; returns the bytes it took."""
    size = disk_usage(path) if path.is_dir() else 0
    fd = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        while True:
            try:
                remove_tree(fd, path.name)
                return size
            except OSError as error:
                # A killed process's unpacker, which ends with it, wrote a last file.
                if error.errno != errno.ENOTEMPTY:
                    raise
    finally:
        os.close(fd)
