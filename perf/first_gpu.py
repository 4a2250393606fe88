"""Every measurement that needs a GPU, the most telling first, within a time of your choice; one Markdown file.

    bash perf/first_gpu.sh gpu.md                      Qwen2.5-VL-7B's shape with random weights, as long as it takes
    bash perf/first_gpu.sh gpu.md --seconds 400        what fits into 400 seconds; the rest is named as not taken
    bash perf/first_gpu.sh gpu.md --try                does it run at all: the smallest sizes, side by side
    bash perf/first_gpu.sh cpu.md --small              the same commands with a small shape, on any machine

No command may take more than its limit, 8 minutes at most. One that fails or runs out of time is named in the file, its
error in FILE.md.log, and the next one goes on. Commands about the large model share one process, which makes it once.
"""

import argparse
import contextlib
import functools
import gc
import json
import os
import runpy
import select
import shlex
import signal
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

from first_gpu_steps import STEPS, Step

PERF = Path(__file__).resolve().parent
ROOT = PERF.parent
GRACE = 20.0  # seconds after its limit in which a command may clean up, before its process is ended
LONGEST, TRIED = 480.0, 80.0  # seconds of any command, and of one that is only tried in the shared process
WRITTEN = 10.0  # seconds after which the file is written again: a run that is cut off has left what it had
LEAST = 10.0  # seconds: with less left a command is not begun


@dataclass
class Section:
    """A command of this run, and what became of it."""

    step: Step
    words: list[str]
    told: str = "not taken: no time was left"
    made: Path | None = None  # what it printed
    seconds: float = 0.0
    failed: bool = False

    def text(self) -> str:
        command = shlex.join(["python", *_as_typed(self.words)])
        printed = "" if self.made is None else self.made.read_text(encoding="utf-8", errors="replace")
        body = f"```\n{printed}```\n\n{self.seconds:.0f} s; " if self.made is not None else ""
        return f"## {self.step.title}\n\n`{command}`\n\n{body}{self.told}\n"


def _as_typed(words: list[str]) -> list[str]:
    return words if words[0].startswith("-") else [f"perf/{words[0]}", *words[1:]]


@dataclass
class Run:
    """All sections of a run into one file, which is written again and again."""

    out: Path
    sections: list[Section]
    seconds: float | None
    tried: bool
    small: bool
    folder: Path  # where what is printed lies until the run has ended
    begin: float = field(default_factory=time.monotonic)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def left(self) -> float:
        return float("inf") if self.seconds is None else self.seconds - (time.monotonic() - self.begin)

    def lane(self, sections: list[Section]) -> None:
        """One after the other, until no time is left."""
        with contextlib.closing(Server(self.log)) as server:
            for section in sections:
                longest = TRIED if self.tried and section.step.shared else LONGEST
                own = LONGEST if self.small else section.step.limit  # of a GPU; any machine may be slow or busy
                limit = min(own, longest, self.left())
                if limit >= LEAST:
                    self._take(section, server, limit)

    def _take(self, section: Section, server: "Server", limit: float) -> None:
        begin, number = time.monotonic(), self.sections.index(section)
        section.made = self.folder / str(number)
        section.told = "running"
        section.made.touch()
        if section.step.shared:
            section.told = server.run(section.words, section.made, limit)
        else:
            section.told = alone(section.words, section.made, limit, self.log)
        section.seconds = time.monotonic() - begin
        section.failed = section.told != "done"
        self.write()
        with self.lock:
            print(f"{time.monotonic() - self.begin:4.0f} s  {section.step.title}: {section.told}", flush=True)

    @property
    def log(self) -> Path:
        return Path(f"{self.out}.log")

    def write(self) -> None:
        with self.lock:
            parts = [f"# Measurements, {time.strftime('%Y-%m-%d')}\n\n{_hardware()}"]
            self.out.write_text("\n".join([*parts, *(section.text() for section in self.sections)]), encoding="utf-8")


@functools.cache
def _hardware() -> str:
    query = ["nvidia-smi", "--query-gpu=name,driver_version,clocks.sm,clocks.mem,temperature.gpu,power.draw"]
    try:
        return subprocess.run([*query, "--format=csv"], capture_output=True, text=True, check=True, timeout=20).stdout
    except (OSError, subprocess.SubprocessError):
        return f"no GPU, {os.cpu_count()} cores\n"


def alone(words: list[str], made: Path, limit: float, log: Path) -> str:
    """A command in a Python of its own; what became of it."""
    command = [sys.executable, *(words if words[0].startswith("-") else [str(PERF / words[0]), *words[1:]])]
    with made.open("w") as out, log.open("a") as errors:
        errors.write(f"--- {shlex.join(words)}\n")
        errors.flush()
        group = {"start_new_session": True, "cwd": ROOT, "env": _environment()}
        process = subprocess.Popen(command, stdout=out, stderr=errors, **group)
        try:
            code = process.wait(limit)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGINT)  # pytest says what it has found
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(GRACE / 2)
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            return f"FAILED: no end within {limit:.0f} s"
    return "done" if code == 0 else f"FAILED with {code}"


def _environment() -> dict[str, str]:
    """This checkout's package, installed or not; one thread each, and no look at the network."""
    path = os.environ.get("PYTHONPATH")
    offline = {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "OMP_NUM_THREADS": "1"}
    return {**offline, **os.environ, "PYTHONPATH": f"{path}{os.pathsep}{ROOT}" if path else str(ROOT)}


class Server:
    """The process that holds the model: one command after the other, started again where one takes it down."""

    def __init__(self, log: Path) -> None:
        self.log = log
        self.process: subprocess.Popen[str] | None = None

    def run(self, words: list[str], made: Path, limit: float) -> str:
        """What became of the command."""
        if self.process is None or self.process.poll() is not None:
            with self.log.open("a") as errors:
                self.process = subprocess.Popen(
                    [sys.executable, str(PERF / "first_gpu.py"), "--serve"],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=errors,
                    text=True,
                    bufsize=1,
                    cwd=ROOT,
                    env=_environment(),
                )
        process = self.process
        assert process.stdin is not None
        assert process.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            process.stdin.write(json.dumps({"words": words, "made": str(made), "limit": limit}) + "\n")
            process.stdin.flush()
        ready, _, _ = select.select([process.stdout], [], [], limit + GRACE)
        answer = process.stdout.readline() if ready else ""
        if not answer:
            self.close()
            return "FAILED: its process ended" if ready else f"FAILED: no end within {limit + GRACE:.0f} s"
        return str(json.loads(answer)["told"])

    def close(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None


# --- within the process that holds the model ---


class OutOfTime(BaseException):
    """Raised in the middle of a command; no Exception, so that nobody takes it for a kernel that does not fit."""


def serve() -> None:
    """Run the commands that standard input names, and answer each with what became of it."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print is no answer
    sys.path.insert(0, str(PERF))
    import models

    models.KEPT = {}
    signal.signal(signal.SIGALRM, _out_of_time)
    for line in sys.stdin:
        given = json.loads(line)
        print(f"--- {shlex.join(given['words'])}", file=sys.stderr, flush=True)
        with Path(given["made"]).open("w", encoding="utf-8") as out:
            told = _told(given["words"], out, given["limit"])
        usable = _made_room()
        answers.write(json.dumps({"told": told}) + "\n")
        answers.flush()
        if not usable:
            return


def _out_of_time(*_: Any) -> None:
    raise OutOfTime


def _told(words: list[str], out: TextIO, limit: float) -> str:
    script, *rest = words
    try:
        with contextlib.redirect_stdout(out), _alarm(limit):
            sys.argv = [script, *rest]
            runpy.run_path(str(PERF / script), run_name="__main__")
    except OutOfTime:
        traceback.print_exc()
        return f"FAILED: no end within {limit:.0f} s"
    except SystemExit as stop:
        return "done" if stop.code in (None, 0) else f"FAILED: {stop.code}"
    except Exception as error:  # whatever it is, the next command goes on
        traceback.print_exc()
        return f"FAILED: {type(error).__name__} ({' '.join(str(error).split())[:300]})"
    return "done"


@contextlib.contextmanager
def _alarm(limit: float) -> Iterator[None]:
    signal.setitimer(signal.ITIMER_REAL, limit)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


def _made_room() -> bool:
    """Give memory back; False where the GPU answers no more, as after an illegal access."""
    import torch

    gc.collect()
    if not torch.cuda.is_available():
        return True
    try:
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    except RuntimeError:
        traceback.print_exc()
        return False
    return True


# --- the command ---


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, nargs="?", help="the Markdown file")
    parser.add_argument("--small", action="store_true", help="a small shape, any machine")
    parser.add_argument("--try", dest="tried", action="store_true", help="the smallest sizes, side by side")
    parser.add_argument("--seconds", type=float, help="for all of them")
    parser.add_argument("--only", nargs="+", metavar="WORD", help="commands by how their titles begin, in this order")
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.serve:
        serve()
        return 0
    if args.out is None:
        parser.error("name the Markdown file to write")
    size = "small" if args.small else "tried" if args.tried else "full"
    steps = STEPS if not args.only else [step for word in args.only for step in STEPS if step.title.startswith(word)]
    sections = [Section(step, shlex.split(getattr(step, size))) for step in steps if getattr(step, size)]
    with tempfile.TemporaryDirectory() as folder:
        run = Run(args.out.resolve(), sections, args.seconds, args.tried, args.small, Path(folder))
        run.log.write_text("")
        lanes = sorted({section.step.lane for section in sections}) if args.tried else [None]
        threads = [
            threading.Thread(target=run.lane, args=([s for s in sections if lane is None or s.step.lane == lane],))
            for lane in lanes
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            while thread.is_alive():
                thread.join(WRITTEN)
                run.write()
    failed = sum(section.failed for section in sections)
    not_taken = sum(section.made is None for section in sections)
    print(f"{failed} failed, {not_taken} not taken; written: {args.out}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
