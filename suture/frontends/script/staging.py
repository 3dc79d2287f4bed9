"""Outputs of a script: written beside their targets, and put in place together once every check holds."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from suture.ir.errors import Code, SutureError
from suture.ir.folders import keep_foreign


class Staging:
    """Folders beside the targets, in which files are written under their final names (an ONNX file names its data file)."""

    def __init__(self) -> None:
        self._folders: list[tuple[Path, Path]] = []

    def path_for(self, target: Path) -> Path:
        """Where to write what shall become `target`; other files written beside it go with it.

        :raises SutureError: WRITE
        """
        try:
            folder = Path(tempfile.mkdtemp(prefix=f".{target.name}.", suffix=".part", dir=target.parent))
        except OSError as error:
            raise SutureError(
                Code.WRITE, f"cannot write here: {error.strerror}", where=str(target), remedy="check its permissions"
            ) from None
        self._folders.append((folder, target))
        return folder / target.name

    def commit(self) -> tuple[Path, ...]:
        """Put every file in place; if one cannot be, those before it are taken back. Returns the targets.

        :raises SutureError: WRITE
        """
        done: list[tuple[Path, Path | None]] = []  # what was put in place, and where its old file went
        try:
            for folder, target in self._folders:
                # The target last: until it is there, what it refers to does not count.
                for file in sorted(folder.iterdir(), key=lambda item: (item.name == target.name, item.name)):
                    final = target.parent / file.name
                    old = folder / f"{file.name}.old" if final.exists() else None
                    if old is not None:
                        final.replace(old)
                    done.append((final, old))
                    file.replace(final)
        except BaseException as error:
            for final, old in reversed(done):
                if final.is_dir():
                    shutil.rmtree(final)
                final.unlink(missing_ok=True)
                if old is not None:
                    old.replace(final)
            if isinstance(error, OSError):
                raise SutureError(
                    Code.WRITE,
                    f"cannot write: {error.strerror}",
                    where=str(target),
                    remedy="check space and permissions",
                ) from None
            raise
        for final, old in done:
            if old is not None and old.is_dir():
                keep_foreign(old, final)
        return tuple(target for _, target in self._folders)

    def clear(self) -> None:
        """Remove what was staged."""
        for folder, _ in self._folders:
            shutil.rmtree(folder, ignore_errors=True)
        self._folders.clear()


@contextlib.contextmanager
def staging() -> Iterator[Staging]:
    """Staged files that disappear at the end of the body unless they were committed, interrupted or not."""
    stage = Staging()
    try:
        yield stage
    finally:
        stage.clear()
