"""Where files may be, and how they come to be: within a folder, and whole or not at all."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

from suture.ir.errors import Code, SutureError


def inside(folder: str | Path, path: str | Path, *, what: str = "path") -> Path:
    """A path as it stands in a folder, symbolic links followed.

    :param what: what the path is for, in the error
    :raises SutureError: PATH, if it leaves the folder
    """
    base = Path(folder).resolve()
    try:
        found = (base / path).resolve()
    except (OSError, RuntimeError, ValueError) as error:
        raise SutureError(
            Code.PATH, f"the {what} {str(path)[:60]!r} is no path: {error}", remedy="write a path within the folder"
        ) from None
    try:
        found.lstat()
    except (FileNotFoundError, NotADirectoryError):
        pass
    except OSError as error:
        raise SutureError(
            Code.PATH, f"the {what} {str(path)[:60]!r} is no path: {error.strerror}", remedy="write a shorter one"
        ) from None
    if found != base and base not in found.parents:
        raise SutureError(
            Code.PATH,
            f"the {what} {str(path)!r} leaves the folder {base}",
            remedy="only files within that folder are used",
        )
    return found


@contextlib.contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """A temporary path beside the target, which takes the target's place if the body ends well and disappears if not.

    :raises SutureError: WRITE, if the system refuses
    """
    target = Path(path)
    try:
        handle, name = tempfile.mkstemp(prefix=f".{target.name}.", suffix=".part", dir=target.parent)
        os.close(handle)
    except OSError as error:
        raise SutureError(
            Code.WRITE,
            f"cannot write here: {error.strerror}",
            where=str(target),
            remedy="give a path in a folder that exists",
        ) from None
    temporary = Path(name)
    try:
        yield temporary
        temporary.chmod(0o666 & ~umask())
        temporary.replace(target)
    except OSError as error:
        raise SutureError(
            Code.WRITE,
            f"cannot write: {error.strerror or error}",
            where=str(target),
            remedy="check space and permissions",
        ) from None
    finally:
        temporary.unlink(missing_ok=True)


def umask() -> int:
    """The permissions that new files do not get."""
    mask = os.umask(0)
    os.umask(mask)
    return mask


def cache_folder(kind: str) -> Path:
    """Where what can be made again is kept: in `SUTURE_CACHE`, else in `suture` in the user's cache folder (XDG Base Directory Specification)."""
    chosen = os.environ.get("SUTURE_CACHE")
    if chosen:
        return Path(chosen).expanduser() / kind
    base = Path(os.environ.get("XDG_CACHE_HOME") or "")
    return (base if base.is_absolute() else Path.home() / ".cache") / "suture" / kind
