"""A process that reads files for another one: both ends of it, and the limits it lives in.

A file can be made to need any time and any memory, or to crash a library written in C. Nothing in the reading process
can bound that, so files are read in a process of their own, which is killed when it takes too long, and a file costs at
most its own worker. Requests and answers are JSON and bytes with their length in front: no pickle, and no second run of
the caller's main script.
"""

import contextlib
import json
import os
import signal
import struct
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import IO, Any, NamedTuple

try:
    import resource
except ImportError:  # Windows
    resource = None  # type: ignore[assignment]

STARTING = 120.0  # seconds within which a worker must be ready
_LENGTH = struct.Struct(">Q")
_TOO_MUCH = 77  # exit status of a worker that saw itself grow too large
_MB = 1 << 20

# Everything is imported from where the caller imports it; the working directory isn't in front, as it would be with -m.
_BOOT = (
    "import sys; memory = int(sys.argv[1]); sys.path[:] = sys.argv[2:]; "
    "from e2erag.extract.worker import serve; serve(memory)"
)


class Answer(NamedTuple):
    """What became of a file: a packed document, or else the reason why there is none.

    `lasting` is whether another attempt with the same reader could only end in the same way.
    """

    packed: bytes
    reason: str = ""
    lasting: bool = True


class Worker:
    """The caller's end. The process starts with the first file, and again after a file that ended it."""

    def __init__(self, memory: int, threads: int = 1) -> None:
        """`memory` in bytes; `threads` is how many of them numeric libraries may use."""
        self.memory, self.threads = memory, threads
        self.process: subprocess.Popen[bytes] | None = None
        self.reason = ""
        self._closed, self._lock = False, threading.Lock()

    def read(self, path: Path, engine: str | None, seconds: float) -> Answer:
        """Raises RuntimeError where no process can be started at all."""
        fresh = self.process is None
        answer = self._ask(path, engine, seconds)
        if answer is None and not fresh:  # the files before it may have left little memory, or damage
            fresh, answer = True, self._ask(path, engine, seconds)
        return answer or Answer(b"", self.reason, lasting=False)

    def _ask(self, path: Path, engine: str | None, seconds: float) -> Answer | None:
        """None, and `reason`, if the process ended of itself or had no memory left."""
        process = self._started()
        late = threading.Event()

        def end() -> None:
            late.set()
            _kill(process)

        timer = threading.Timer(seconds, end)
        timer.daemon = True
        timer.start()
        try:
            assert process.stdin is not None
            assert process.stdout is not None
            _send(process.stdin, json.dumps({"path": str(path), "engine": engine, "seconds": seconds}).encode())
            answer = json.loads(_receive(process.stdout))
            packed = _receive(process.stdout)
        except (OSError, EOFError, ValueError):  # ValueError: closed by `close`
            answer = {}
        finally:
            timer.cancel()
        if late.is_set():
            self._end()
            way = "give it more (seconds=…), or leave it out"
            return Answer(b"", f"is not read after {seconds:,.0f} s: {way}", lasting=False)
        if not answer or answer["reason"] is None:
            code = self._end()
            full = bool(answer) or code == _TOO_MUCH
            size, more = f"{self.memory / _MB:,.0f} MB", "give it more (memory=…)"
            self.reason = f"{_died(code)}, perhaps for want of more than {size}: {more}, or try another engine"
            if full:
                self.reason = f"needs more than {size} to be read: {more}, or leave it out"
            return None
        return Answer(packed, answer["reason"])

    def close(self) -> None:
        """Ends the process, in the middle of a file too, and leaves no pipe or zombie; none is started again."""
        with self._lock:
            self._closed = True
        self._end()

    def _started(self) -> "subprocess.Popen[bytes]":
        with self._lock:
            if self._closed:
                raise RuntimeError("the worker was closed")
            if self.process is None:
                self.process = self._start()
            return self.process

    def _start(self) -> "subprocess.Popen[bytes]":
        paths = [os.fspath(path) for path in sys.path]
        environment = {"OMP_NUM_THREADS": str(self.threads), **os.environ}
        process = subprocess.Popen(
            [sys.executable, "-c", _BOOT, str(self.memory), *paths],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=environment,
            start_new_session=True,  # Ctrl-C is the caller's; and what a worker started ends with it
        )
        assert process.stdout is not None
        assert process.stderr is not None
        timer = threading.Timer(STARTING, _kill, [process])
        timer.daemon = True
        timer.start()
        try:
            _receive(process.stdout)
        except (OSError, EOFError):
            _kill(process)
            said = process.stderr.read().decode("utf-8", "replace").strip().splitlines()
            why = said[-1] if said else _died(process.wait())
            _let_go(process)
            raise RuntimeError(
                f"no process to read in could be started ({why}): it may have {self.memory / _MB:,.0f} MB "
                "(memory=…); workers=0 reads without"
            ) from None
        finally:
            timer.cancel()
        process.stderr.close()
        return process

    def _end(self) -> int:
        """The status with which the process ended, of itself or by this."""
        with self._lock:
            process, self.process = self.process, None
        if process is None:
            return 0
        with contextlib.suppress(subprocess.TimeoutExpired):  # it says more when it ended of itself
            if not self._closed:
                process.wait(0.2)
        _kill(process)
        code = process.wait()
        _let_go(process)
        return code


def _kill(process: "subprocess.Popen[bytes]") -> None:
    """With what it has started; nothing is asked of it first."""
    with contextlib.suppress(OSError):
        if os.name == "posix" and process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    process.kill()


def _let_go(process: "subprocess.Popen[bytes]") -> None:
    for pipe in (process.stdin, process.stdout, process.stderr):
        if pipe is not None:
            with contextlib.suppress(OSError):  # a request that nobody took is still in it
                pipe.close()


def _died(code: int) -> str:
    try:
        how = signal.Signals(-code).name if code < 0 else f"exit status {code}"
    except ValueError:
        how = f"signal {-code}"
    return f"made the process that reads it end ({how})"


def _send(pipe: IO[bytes], data: bytes) -> None:
    pipe.write(_LENGTH.pack(len(data)))
    pipe.write(data)
    pipe.flush()


def _receive(pipe: IO[bytes]) -> bytes:
    size = pipe.read(_LENGTH.size)
    if len(size) < _LENGTH.size:
        raise EOFError
    (length,) = _LENGTH.unpack(size)
    data = pipe.read(length)
    if len(data) < length:
        raise EOFError
    return data


# In the worker


def serve(memory: int) -> None:
    """Answer requests from standard input until it ends."""
    from e2erag.extract.read import attempt  # what it may take to import it belongs to the start
    from e2erag.extract.readers.pdf import prepare

    prepare()
    requests, answers = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    limit(memory)
    threading.Thread(target=_watch, args=(memory, os.getppid()), daemon=True).start()
    _send(answers, b"ready")
    with open(os.devnull, "r+b") as null:  # what a library prints goes nowhere, above all not between the answers
        for descriptor in (0, 1, 2):
            os.dup2(null.fileno(), descriptor)
    while True:
        try:
            request = json.loads(_receive(requests))
        except EOFError:
            return
        _limit_time(request["seconds"])
        reason, packed = _read(attempt, Path(request["path"]), request["engine"], memory)
        _send(answers, json.dumps({"reason": reason}).encode())
        _send(answers, packed)


def _read(attempt: Any, path: Path, engine: str | None, memory: int) -> tuple[str | None, bytes]:
    """The reason and the packed document; a reason of None is that there was no memory."""
    from e2erag.extract.document import ReadError
    from e2erag.extract.pack import pack

    try:
        document = attempt(path, engine)
        if isinstance(document, ReadError):
            return document.reason, b""
        packed = pack(document)
    except MemoryError:
        return None, b""
    if len(packed) > memory // 8:  # it takes the caller several times as much
        return None, b""
    return "", packed


def limit(memory: int) -> None:
    """Let this process have `memory` bytes, where the system can say so; what crashes leaves no core behind.

    Of data: libraries reserve room for their threads, and map files, without having it in memory.
    """
    if resource is not None:
        for kind, most in (("RLIMIT_DATA", memory), ("RLIMIT_CORE", 0)):
            with contextlib.suppress(ValueError, OSError, AttributeError):
                resource.setrlimit(getattr(resource, kind), (most, most))


def _limit_time(seconds: float) -> None:
    """A second line: the caller may be dead when this file turns out to be endless."""
    if resource is not None:
        used = time.process_time() + (seconds + 5) * (os.cpu_count() or 1)
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_CPU, (int(used) + 1, resource.getrlimit(resource.RLIMIT_CPU)[1]))


def _largest() -> int:
    """The most bytes that this process has held, as far as the system says.

    Not `getrusage` on Linux: it counts what the caller held when this process was started.
    """
    if sys.platform == "linux":
        with contextlib.suppress(OSError, MemoryError), open("/proc/self/status", "rb") as status:
            return next((int(line.split()[1]) << 10 for line in status if line.startswith(b"VmHWM:")), 0)
    elif resource is not None:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return 0


def _watch(memory: int, parent: int) -> None:
    """End this process when it has grown too large (macOS takes no limit), or when nobody waits for it any more."""
    while True:
        time.sleep(0.2)
        if _largest() > memory + 256 * _MB:
            os._exit(_TOO_MUCH)
        if os.name == "posix" and os.getppid() != parent:
            os._exit(0)
