"""Work in forked children: within limits of memory and time, with nothing left behind, and without importing or loading anything again.

`apart` runs one piece of work to its end; `Children` stay and are asked again and again, so that each has its own heap and caches as it would have
alone, while the machine's noise falls on all alike.

The parent must not have used torch's threads or a GPU, and does neither here.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import selectors
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from types import TracebackType
from typing import IO, Any, Self

import torch

OUT_OF_MEMORY, TOO_SLOW, FAILED = "out of memory", "too slow", "failed"
_SAYS = (
    "can't allocate memory",
    "not enough memory",
    "out of memory",
    "bad_alloc",
    "Cannot allocate memory",
    "MemoryError",
)

Said = dict[str, Any]
Work = Callable[[Callable[[Said], None]], None]
Service = Callable[[str], Said]


def apart(work: Work, *, memory: float, seconds: float, threads: int) -> tuple[list[Said], Said | None]:
    """Run `work(say)` in a child process; what it says arrives at once, so that it counts even where the child does not come to its end.

    :param memory: what the child may take, in gigabytes; 0 for no limit
    :returns: what was said, and None or how the child failed: `status` "out of memory", "too slow" or "failed", and `why`
    """
    read, write = os.pipe()
    with tempfile.TemporaryFile("w+") as errors:
        child = os.fork()
        if not child:
            os.close(read)
            _in_child(work, write, errors, memory, threads)
        os.close(write)
        timely = False
        try:
            text, timely = _read(read, time.monotonic() + seconds)
        finally:
            if not (timely and _ended(child)):
                os.killpg(child, signal.SIGKILL)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        os.close(read)
        errors.seek(0)
        said = [json.loads(line) for line in text.decode().splitlines(keepends=True) if line.endswith("\n")]
        if code == 0:
            return said, None
        return said, _failure(code, errors.read()) if timely else {
            "status": TOO_SLOW,
            "why": f"not done in {seconds:g} s",
        }


class Children:
    """Children that answer what they are asked, by name; used with `with`, which ends them.

    :param memory: what each child may take, in gigabytes; 0 for no limit
    """

    def __init__(self, *, memory: float, threads: int) -> None:
        self.memory, self.threads = memory, threads
        self._open: dict[str, tuple[int, int, int]] = {}  # the child, where it listens, and where it answers

    def start(self, name: str, prepare: Callable[[], Service]) -> None:
        """Fork a child, which prepares itself before it answers its first question."""
        listens, asks = os.pipe()
        answers, says = os.pipe()
        child = os.fork()
        if not child:
            for _, *ends in self._open.values():
                for end in ends:
                    os.close(end)
            os.close(asks)
            os.close(answers)
            with open(os.devnull, "w", encoding="ascii") as silent:
                _in_child(lambda say: _serve(prepare, listens, say), says, silent, self.memory, self.threads)
        os.close(listens)
        os.close(says)
        self._open[name] = child, asks, answers

    def ask(self, name: str, question: str, seconds: float) -> Said | None:
        """Its answer, in one line; None where it ended or took too long, after which it is not there any more."""
        if name not in self._open:
            return None
        _, asks, answers = self._open[name]
        try:
            _write(asks, question + "\n")
        except BrokenPipeError:
            self._end(name)
            return None
        text, _ = _read(answers, time.monotonic() + seconds, lines=1)
        if not text.endswith(b"\n"):
            self._end(name)
            return None
        said: Said = json.loads(text)
        return said

    def _end(self, name: str) -> None:
        child, *ends = self._open.pop(name)
        for end in ends:
            os.close(end)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child, signal.SIGKILL)
        os.waitpid(child, 0)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        for name in list(self._open):
            self._end(name)


def _serve(prepare: Callable[[], Service], listens: int, say: Callable[[Said], None]) -> None:
    service = prepare()
    with os.fdopen(listens, encoding="utf-8") as questions:
        for question in questions:
            say(service(question.rstrip("\n")))


def _in_child(work: Work, write: int, errors: IO[str], memory: float, threads: int) -> None:
    """Never returns."""
    code = 1
    try:
        os.setsid()
        os.dup2(errors.fileno(), 2)
        if memory:
            resource.setrlimit(resource.RLIMIT_DATA, (int(memory * 2**30), resource.RLIM_INFINITY))
        torch.set_num_threads(threads)
        work(lambda said: _write(write, json.dumps(said) + "\n"))
        code = 0
    except BaseException:  # whatever it is, this process ends here
        traceback.print_exc(file=errors)
        errors.flush()
    finally:
        os._exit(code)


def _write(write: int, text: str) -> None:
    data = text.encode()
    while data:
        data = data[os.write(write, data) :]


def _read(read: int, until: float, lines: float = float("inf")) -> tuple[bytes, bool]:
    """What comes until the end, until the time is up or until so many lines are complete, and whether it was the end."""
    text = b""
    with selectors.DefaultSelector() as selector:
        selector.register(read, selectors.EVENT_READ)
        while text.count(b"\n") < lines and (left := until - time.monotonic()) > 0:
            if selector.select(left):
                part = os.read(read, 1 << 16)
                if not part:
                    return text, True
                text += part
    return text, False


def _ended(child: int) -> bool:
    """Whether a child has closed its side by ending, which takes a moment; it stays to be waited for."""
    for _ in range(20):
        if os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None:
            return True
        time.sleep(0.05)
    return False


def _failure(code: int, errors: str) -> Said:
    killed = code == -signal.SIGKILL
    short = killed or any(text in errors for text in _SAYS)
    lines = errors.strip().splitlines()[-1:] or [f"exit code {code}"]
    return {"status": OUT_OF_MEMORY if short else FAILED, "why": "killed" if killed else lines[0][:200]}


def name_of_gpu() -> str | None:
    """The GPU that torch sees, asked in a child: the answer itself would keep later children from using it."""

    def work(say: Callable[[Said], None]) -> None:
        say({"gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None})

    said, _ = apart(work, memory=0, seconds=60, threads=1)
    return said[0]["gpu"] if said else None


if sys.platform == "win32":
    raise SystemExit("this benchmark forks processes and limits them, which Windows does not offer")
