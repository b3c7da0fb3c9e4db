"""The contract of an image store: references in, unpacked layers out."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Collection
from typing import Protocol

from hutch.models import Image, PullProgress

ProgressCallback = Callable[[PullProgress], None]
"""Called on the event loop's thread; must not block."""


class ImageStore(Protocol):
    """Images by reference. Layers are content-addressed and unpacked once per store.

    Several processes may use one store at once. An interrupted call leaves the store as it was.
    """

    @abstractmethod
    async def get(self, reference: str) -> Image:
        """Return an image that is in the store, by name or (a prefix of) id.

        Raises:
            ImageNotFoundError: it is not.
            InvalidRequestError: the reference is malformed.
        """

    @abstractmethod
    async def pull(
        self, reference: str, *, name: str | None = None, progress: ProgressCallback | None = None
    ) -> Image:
        """Obtain an image from its source and name it `name` or, without one, the reference.

        Concurrent calls for one reference do the work once. What is there already and still
        what the source has is not fetched again.

        Raises:
            ImagePullError: the source failed.
            ImageVerificationError: content is corrupt, hostile or not what its digest says.
            ImageNotFoundError: the source has no such image.
        """

    @abstractmethod
    async def ensure(self, reference: str, *, progress: ProgressCallback | None = None) -> Image:
        """`get`, or `pull` when it is not in the store."""

    @abstractmethod
    async def list(self) -> list[Image]:
        """All images, by name."""

    @abstractmethod
    async def remove(self, reference: str, *, in_use: Collection[str] = ()) -> None:
        """Remove a name; with the last name go the image and the layers nothing else has.

        Raises:
            InUseError: its id is among `in_use`.
        """

    @abstractmethod
    async def prune(self, *, in_use: Collection[str] = ()) -> int:
        """Remove nameless images and layers nothing needs, and what interrupted calls left.

        Returns:
            Bytes freed.
        """
