"""Files that are whole or not there: written in a folder beside their target, flushed to the disk, then moved into place."""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from suture.ir.errors import Code, SutureError


@contextmanager
def staged(target: Path) -> Iterator[Path]:
    """A temporary folder on the target's own disk. What stands in it when the block ends well is moved beside the target.

    If the block is left by an error or an interrupt, or a move fails, the files that were there stay as they were.

    :raises SutureError: WRITE, if the disk is full or the folder cannot be written
    """
    folder = target.parent
    try:
        stage = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=folder))
    except OSError as error:
        raise _failure(target, error) from None
    try:
        yield stage
        _move(
            [(made, folder / made.name) for made in sorted(stage.iterdir(), key=lambda made: made.name == target.name)]
        )
    except OSError as error:
        raise _failure(target, error) from None
    finally:
        shutil.rmtree(stage, ignore_errors=True)


def write_pieces(path: Path, pieces: Iterator[bytes | memoryview]) -> None:
    """Write pieces one after the other, and wait until the disk has them."""
    with path.open("wb") as file:
        for piece in pieces:
            file.write(piece)
        file.flush()
        os.fsync(file.fileno())


def _move(moves: Sequence[tuple[Path, Path]]) -> None:
    """Put all files into their places, or, if one of them cannot be moved, all the old ones back."""
    done: list[tuple[Path, Path | None]] = []
    try:
        for made, place in moves:
            kept: Path | None = None
            if len(moves) > 1 and place.exists():  # one move alone is atomic
                kept = made.with_name(f"{made.name}.old")
                _keep(place, kept)
            done.append((place, kept))
            made.replace(place)
    except BaseException:
        for place, kept in done:
            with suppress(OSError):
                if kept is not None:
                    kept.replace(place)
                elif not any(made.exists() for made, there in moves if there == place):
                    place.unlink()
        raise


def _keep(place: Path, kept: Path) -> None:
    try:
        os.link(place, kept)
    except OSError:  # a file system without links
        place.replace(kept)


def _failure(target: Path, error: OSError) -> SutureError:
    remedy = (
        "free some space on the disk"
        if error.errno == errno.ENOSPC
        else "choose a folder that exists and may be written"
    )
    return SutureError(Code.WRITE, f"not written: {error.strerror or error}", where=str(target), remedy=remedy)
