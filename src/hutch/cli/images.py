"""Commands for images: `hutch image …`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hutch.cli import options
from hutch.cli.completion import image_names
from hutch.cli.output import ago, print_json, print_table, pull_progress, size, tell
from hutch.cli.session import FAILED, run
from hutch.errors import HutchError

if TYPE_CHECKING:
    from hutch.engine.engine import Engine
    from hutch.models import Image

app = typer.Typer(no_args_is_help=True, help="Obtain, list and remove images.")
Reference = Annotated[str, typer.Argument(metavar="REFERENCE", autocompletion=image_names)]
References = Annotated[
    list[str], typer.Argument(metavar="REFERENCE...", autocompletion=image_names)
]
Name = Annotated[str | None, typer.Option("--name", help="What to call it.")]


def _obtain(reference: str, name: str | None, *, as_json: bool) -> None:
    async def body(engine: Engine) -> Image:
        with pull_progress() as progress:
            return await engine.images.pull(reference, name=name, progress=progress)

    image = run(body)
    print_json(image) if as_json else sys.stdout.write(f"{image.id}\n")


@app.command()
def pull(reference: Reference, name: Name = None, as_json: options.AsJson = False) -> None:
    """Obtain an image from where a reference says it is, anew if it is here already."""
    _obtain(reference, name, as_json=as_json)


@app.command()
def build(
    suite: Annotated[str, typer.Argument(metavar="SUITE", help="As in bookworm.")],
    include: Annotated[
        list[str] | None, typer.Option("--include", metavar="PACKAGE", help="Also this package.")
    ] = None,
    mirror: Annotated[str | None, typer.Option("--mirror", help="Instead of Debian's.")] = None,
    user: Annotated[
        str | None, typer.Option("--user", help="A user to make, whom programs run as.")
    ] = None,
    name: Name = None,
    as_json: options.AsJson = False,
) -> None:
    """Build a Debian image with mmdebstrap."""
    given = {"include": ",".join(include or []), "mirror": mirror, "user": user}
    query = "&".join(f"{key}={value}" for key, value in given.items() if value)
    _obtain(f"debootstrap:{suite}{'?' + query if query else ''}", name, as_json=as_json)


@app.command(name="import")
def import_(
    source: Annotated[
        str, typer.Argument(metavar="PATH|REFERENCE", help="A directory, an archive, or oci:DIR …")
    ],
    name: Name = None,
    as_json: options.AsJson = False,
) -> None:
    """Make an image of a directory, a tar archive, an OCI layout or a docker archive."""
    from hutch.images.recognition import recognise

    schemes = ("rootfs:", "oci:", "oci-archive:", "docker-archive:")
    reference = source if source.startswith(schemes) else recognise(Path(source))
    _obtain(reference, name, as_json=as_json)


@app.command()
def ls(quiet: options.Quiet = False, as_json: options.AsJson = False) -> None:
    """List images."""

    async def body(engine: Engine) -> list[Image]:
        return await engine.images.list()

    images = run(body)
    if as_json:
        print_json(images)
    elif quiet:
        sys.stdout.write("".join(f"{image.id}\n" for image in images))
    else:
        print_table(("NAME", "ID", "SIZE", "CREATED"), [row for i in images for row in _rows(i)])


def _rows(image: Image) -> list[tuple[str, ...]]:
    short = image.id.removeprefix("sha256:")[:12]
    return [
        (name, short, size(image.size), ago(image.created_at)) for name in image.names or ("-",)
    ]


@app.command()
def inspect(references: References) -> None:
    """Print all there is to know of images, as JSON."""

    async def body(engine: Engine) -> list[Image]:
        return [await engine.images.get(reference) for reference in references]

    print_json(run(body))


@app.command()
def rm(references: References) -> None:
    """Remove images that no sandbox is made of."""

    async def body(engine: Engine) -> bool:
        failed = False
        for reference in references:
            try:
                await engine.remove_image(reference)
                sys.stdout.write(f"{reference}\n")
            except HutchError as error:
                tell(error)
                failed = True
        return failed

    if run(body):
        raise typer.Exit(FAILED)


@app.command()
def prune() -> None:
    """Remove what no name and no sandbox needs, and what interrupted pulls left."""

    async def body(engine: Engine) -> int:
        return await engine.prune_images()

    sys.stdout.write(f"freed {size(run(body))}\n")
