"""Folders that are written whole: beside their target, under a name of their own, and put in its place when they are done.

A folder that was written before is known by a file that lists what belongs to it. What else lies in it (a build, say) moves along.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from suture.ir.errors import Code, SutureError
from suture.ir.files import umask

MANIFEST = "suture-build.json"
"""The file that lists what belongs to a written folder."""


def check_replaceable(target: Path) -> None:
    """Whether a folder may be written there: nothing is there, or an empty folder, or one that was written before.

    :raises SutureError: WRITE
    """
    if not target.exists() and not target.is_symlink():
        if not target.parent.is_dir():
            raise SutureError(
                Code.WRITE, "there is no folder to write into", where=str(target), remedy=f"make {target.parent} first"
            )
        return
    if not target.is_dir():
        raise SutureError(Code.WRITE, "there is a file of that name", where=str(target), remedy="give another folder")
    try:
        found = sorted(entry.name for entry in target.iterdir())
    except OSError as error:
        raise _refused(target, error) from None
    if found and _listed(target) is None:
        raise SutureError(
            Code.WRITE, f"the folder holds {found[0]!r} and other things that are not ours" if len(found) > 1 else f"the folder holds {found[0]!r}",
            where=str(target), remedy="give a new or an empty folder, or one that a build wrote before",
        )  # fmt: skip


@contextlib.contextmanager
def replacing_folder(target: str | Path, described: Mapping[str, Any]) -> Iterator[Path]:
    """A new folder beside the target, which takes the target's place if the body ends well and disappears if not.

    :param described: what its manifest says besides the files
    :raises SutureError: WRITE, if the target is a folder of other things or the system refuses
    """
    target = Path(target)
    check_replaceable(target)
    try:
        made = Path(tempfile.mkdtemp(prefix=f".{target.name}.", suffix=".part", dir=target.parent))
    except OSError as error:
        raise _refused(target, error) from None
    try:
        yield made
        write_manifest(made, described)
        put_in_place(made, target)
    except OSError as error:
        raise _refused(target, error) from None
    finally:
        shutil.rmtree(made, ignore_errors=True)


def write_manifest(folder: Path, described: Mapping[str, Any]) -> None:
    """List what is in a folder as belonging to it."""
    files = sorted(str(path.relative_to(folder).as_posix()) for path in folder.rglob("*") if path.is_file())
    text = json.dumps({**described, "files": files}, indent=2, sort_keys=True)
    (folder / MANIFEST).write_text(text + "\n", encoding="utf-8")


def put_in_place(made: Path, target: Path) -> None:
    """Move a written folder to its target. What lay there and is not listed as written before moves into it; the rest goes."""
    made.chmod(0o777 & ~umask())
    if not target.exists():
        made.rename(target)
        return
    before = Path(tempfile.mkdtemp(prefix=f".{target.name}.", suffix=".old", dir=target.parent)) / target.name
    target.rename(before)
    try:
        made.rename(target)
    except OSError:
        before.rename(target)
        before.parent.rmdir()
        raise
    keep_foreign(before, target)
    shutil.rmtree(before.parent, ignore_errors=True)


def keep_foreign(before: Path, target: Path) -> None:
    """Move what a folder's manifest does not list into the folder that took its place."""
    own = _listed(before) or frozenset()
    for entry in list(before.iterdir()):
        if entry.name not in own and entry.name != MANIFEST and not (target / entry.name).exists():
            entry.rename(target / entry.name)


def _listed(folder: Path) -> frozenset[str] | None:
    """What a folder's manifest lists; None if it has none."""
    try:
        found = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))["files"]
        return frozenset(str(name).split("/")[0] for name in found)
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _refused(target: Path, error: OSError) -> SutureError:
    return SutureError(
        Code.WRITE, f"cannot write: {error.strerror or error}", where=str(target), remedy="check space and permissions"
    )
