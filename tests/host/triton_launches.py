"""Triton without a GPU: a driver that has the JIT compile what is launched, as it is launched, and runs nothing."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import sass
from triton.backends.compiler import GPUTarget
from triton.runtime import driver

# Bytes of shared memory that a block can have; 99 KB where it is not named.
SHARED = {80: 163 * 1024, 90: 227 * 1024, 100: 227 * 1024}


@dataclass(frozen=True)
class Launch:
    """One launch: what the JIT made of its arguments."""

    name: str
    grid: tuple[int, int, int]
    signature: dict[str, str]
    """The type of each argument; "constexpr" for an integer that is 1, for None and for constants."""
    cubin: bytes
    shared: int
    """Bytes of shared memory that the launch asks for, beside what the kernel's machine code has of its own."""

    def machine_code(self, folder: Path) -> sass.Kernel:
        """Its instructions, and what a block takes."""
        cubin = folder / f"{self.name}.cubin"
        cubin.write_bytes(self.cubin)
        return sass.kernels(cubin)[0]


class _Driver:
    """As much of a device as the JIT asks for before a launch."""

    def __init__(self, capability: int):
        self.capability, self.launches, self._launcher = capability, [], None
        self.utils = SimpleNamespace(
            get_device_properties=lambda device: {"max_shared_mem": SHARED.get(capability, 99 * 1024)},
            load_binary=self._load,
            unload_module=lambda module: None,
        )

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", self.capability, 32)

    def get_current_device(self) -> int:
        return 1000 + self.capability  # compiled kernels are kept by device: no real one's are touched

    def get_current_stream(self, device: int) -> int:
        return 0

    def launcher_cls(self, source, metadata) -> "_Launcher":
        self._launcher = _Launcher(source)
        return self._launcher

    def _load(self, name: str, cubin: bytes, shared: int, device: int) -> tuple:
        self._launcher.cubin, self._launcher.shared = cubin, shared  # right after the JIT has made the launcher
        return object(), 0, 0, 0, 1024


class _Launcher:
    def __init__(self, source):
        self.name, self.signature, self.cubin = source.name, dict(source.signature), b""
        self.shared = 0

    def __call__(self, x: int, y: int, z: int, *_) -> None:
        driver.active.launches.append(Launch(self.name, (x, y, z), self.signature, self.cubin, self.shared))


@contextmanager
def compiled_launches(capability: int) -> Iterator[list[Launch]]:
    """Within it, what is launched on CPU tensors is compiled for this capability and noted in the list."""
    before = driver._active
    noted = _Driver(capability)
    driver.set_active(noted)
    try:
        yield noted.launches
    finally:
        driver.set_active(before)
