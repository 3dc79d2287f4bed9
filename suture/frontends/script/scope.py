"""What a script's statements share while they are resolved: bound names, the folder that files may be in, errors at their place."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import NoReturn

from suture.frontends.script.ast import Name, Option, Script, Span, Text
from suture.frontends.script.diagnostics import located, script_error
from suture.ir.errors import Code, SutureError, nearest
from suture.ir.files import inside
from suture.ir.folders import check_replaceable

ORIGINAL = "original"
"""What the other name of a check first held."""


class Scope:
    """The names bound so far, and the files written."""

    def __init__(self, script: Script) -> None:
        self.script = script
        self.folder = Path(script.file).resolve().parent
        self.names: dict[str, Span] = {}
        self.written: dict[Path, Span] = {}

    def bind(self, name: Name) -> None:
        """Bind a new name."""
        if name.text == ORIGINAL:
            self.fail(Code.SCRIPT_NAME, "'original' is what a name first held", name.span, "take another name")
        if name.text in self.names:
            what = f"the name {name.text!r} is taken since line {self.names[name.text].line}"
            self.fail(Code.SCRIPT_NAME, what, name.span, "take another name; a pass replaces what a name holds")
        self.names[name.text] = name.span

    def known(self, name: Name) -> None:
        """Require a name that is bound."""
        if name.text in self.names or (name.text == ORIGINAL and self.names):
            return
        remedy = (
            nearest(name.text, [*self.names, ORIGINAL], what="name")
            if self.names
            else "a model comes first: model net = ..."
        )
        self.fail(Code.SCRIPT_NAME, f"no model is called {name.text!r} here", name.span, remedy)

    def one_of(self, name: Name, known: Iterable[str], what: str) -> None:
        """Require one of several words."""
        if name.text not in known:
            self.fail(
                Code.SCRIPT_OPTION, f"there is no {what} {name.text!r}", name.span, nearest(name.text, known, what=what)
            )

    def single_text(self, option: Option) -> Text:
        """The one text of an option."""
        value = option.values[0]
        if len(option.values) != 1 or not isinstance(value, Text):
            self.fail(
                Code.SCRIPT_OPTION,
                f"option {option.name.text!r} takes one file",
                option.span,
                'write its path in quotes: "..."',
            )
        return value

    def existing(self, text: Text, what: str) -> Path:
        """A file within the script's folder."""
        path = self.within(text, what)
        if not path.is_file():
            names = [item.name for item in path.parent.iterdir() if item.is_file()] if path.parent.is_dir() else []
            self.fail(Code.FILE, f"there is no file {text.value!r}", text.span, nearest(path.name, names, what="file"))
        return path

    def target(self, text: Text) -> Path:
        """A file to write: in a folder that exists, and written once."""
        path = self.within(text, "output")
        if not path.parent.is_dir():
            self.fail(Code.FILE, f"the folder of {text.value!r} does not exist", text.span, "make it first")
        if path.is_dir() or not text.value:
            self.fail(Code.FILE, f"{text.value!r} is a folder", text.span, "give the path of a file")
        return self.once(path, text)

    def target_folder(self, text: Text) -> Path:
        """A folder to write: new, empty, or written by a build before; written once."""
        path = self.within(text, "output")
        if path == self.folder.resolve():
            self.fail(
                Code.FILE, f"{text.value!r} is the script's own folder", text.span, "give the path of a folder in it"
            )
        try:
            check_replaceable(path)
        except SutureError as error:
            raise located(error, self.script, text.span) from None
        return self.once(path, text)

    def once(self, path: Path, text: Text) -> Path:
        """Note that a path is written, and refuse to write it twice."""
        if path in self.written:
            what = f"{text.value!r} is written on line {self.written[path].line} already"
            self.fail(Code.SCRIPT_OPTION, what, text.span, "write another file")
        self.written[path] = text.span
        return path

    def within(self, text: Text, what: str) -> Path:
        """A path that stays in the script's folder."""
        try:
            return inside(self.folder, text.value, what=what)
        except SutureError as error:
            raise located(error, self.script, text.span) from None

    def fail(self, code: Code, what: str, span: Span, remedy: str) -> NoReturn:
        """Raise an error at a place of the script."""
        raise script_error(code, what, self.script, span, remedy)
