"""What the stub GPU saw: for programs that run on it, see __main__.py.

    stub_gpu.reset()
    trainer.step(step, *batch)
    seen = stub_gpu.seen()
    seen.launches, seen.total("sync"), seen.names("memcpy"), seen.violations

Every number is exact and says nothing of time; every value that a kernel would have computed is meaningless.
"""

import ctypes
import re
from collections import Counter
from contextlib import contextmanager
from dataclasses import dataclass, field

_library = ctypes.CDLL(None)
if hasattr(_library, "stub_report"):
    _library.stub_report.restype = ctypes.c_char_p
# What the host asks the device to run; a graph is one.
LAUNCHES = ("kernel", "library", "triton", "graph")


@dataclass
class Seen:
    """What was asked of the device since the last reset."""

    counts: Counter = field(default_factory=Counter)
    """By (kind, name). Kinds: kernel, library, triton, graph, memcpy, memset, sync, malloc, free, plan, compile."""
    nodes: Counter = field(default_factory=Counter)
    """The nodes of the graph captured last, by (kind, name); a reset leaves them."""
    violations: list[str] = field(default_factory=list)
    """Calls that CUDA does not permit, or takes and a graph would get wrong."""
    trace: list[tuple[int, str, str]] = field(default_factory=list)
    """(stream, kind, name) in order, within `traced`; also of kind wait, whose name is the streams waited for."""
    context: str | None = None
    """The first call of this process that needed a CUDA context."""

    def total(self, *kinds: str) -> int:
        return sum(number for (kind, _), number in self.counts.items() if kind in kinds)

    def names(self, kind: str) -> Counter:
        return Counter({name: number for (one, name), number in self.counts.items() if one == kind})

    @property
    def launches(self) -> int:
        return self.total(*LAUNCHES)


def active() -> bool:
    """Whether this process runs on the stub."""
    return hasattr(_library, "stub_report")


def reset() -> None:
    _library.stub_reset()


def seen() -> Seen:
    result = Seen()
    for line in _library.stub_report().decode().splitlines():
        sort, *rest = line.split("\t")
        if sort == "count":
            result.counts[rest[1], rest[2]] += int(rest[0])
        elif sort == "node":
            result.nodes[rest[0], rest[1]] += 1
        elif sort == "violation":
            result.violations.append(rest[0])
        elif sort == "trace":
            result.trace.append((int(rest[0]), rest[1], rest[2]))
        elif sort == "context":
            result.context = rest[0]
    return result


@contextmanager
def traced():
    """Within it, what happens is kept in its order."""
    _library.stub_trace(1)
    try:
        yield
    finally:
        _library.stub_trace(0)


def enqueue(stream: int, kind: str, name: str) -> None:
    """An operation that reaches no library of CUDA's: counted as the stub's own are."""
    _library.stub_enqueue(ctypes.c_void_p(stream), kind.encode(), name.encode())


def violation(what: str) -> None:
    _library.stub_violation(what.encode())


def short(name: str) -> str:
    """A kernel's name without namespaces, template arguments and parameters; of torch's general ones, what they do."""
    bare, *rest = re.split(r"[<(]", name.removeprefix("void ").replace("(anonymous namespace)::", ""), maxsplit=1)
    bare = bare.replace("at::native::", "")
    if "elementwise" not in bare and bare not in ("reduce_kernel", "multi_tensor_apply_kernel"):
        return bare
    found = re.findall(r"\w*(?:[Ff]unctor|kernel)\w*", rest[0] if rest else "")
    told = [word for word in dict.fromkeys(found) if not word.startswith("gpu_kernel")]
    return " ".join([bare, *told[:2]])
