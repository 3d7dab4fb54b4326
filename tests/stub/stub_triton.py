"""Triton on the stub GPU: its JIT works as on an H100, down to the machine code; the launch is recorded and no more."""

import stub_gpu
import torch
from triton.backends.compiler import GPUTarget
from triton.runtime.driver import driver

NUM_REGISTERS, NUM_SPILLS, MAX_THREADS = 32, 0, 1024


class Utils:
    """What the driver's C part does."""

    def get_device_properties(self, device: int) -> dict[str, int]:
        found = torch.cuda.get_device_properties(device)
        shared = found.shared_memory_per_block_optin
        return {"max_shared_mem": shared, "multiprocessor_count": found.multi_processor_count, "warpSize": 32}

    def load_binary(self, name: str, binary: bytes, shared: int, device: int) -> tuple:
        if torch.cuda.is_current_stream_capturing():
            stub_gpu.violation(f"Triton loads {name} in a capture")
        return name, name, NUM_REGISTERS, NUM_SPILLS, MAX_THREADS

    def __getattr__(self, name: str):
        raise NotImplementedError(f"stub GPU: Triton's driver has no {name}; tests/stub/stub_triton.py")


class Launcher:
    """A compiled kernel's launch."""

    def __init__(self, source, metadata):
        self.signature = list(source.signature.values())

    def __call__(self, x: int, y: int, z: int, stream: int, function: str, metadata, info, enter, leave, *args) -> None:
        for kind, value in zip(self.signature, args, strict=True):
            if kind.startswith("*") and value is not None and not value.is_cuda:
                raise ValueError(f"Pointer argument of {function} cannot be accessed from Triton (cpu tensor?)")
        if x * y * z > 0:  # Triton itself launches nothing for an empty grid
            stub_gpu.enqueue(stream, "triton", function)


class Driver:
    """Of triton.backends.nvidia.driver.CudaDriver what the JIT calls."""

    def __init__(self):
        self.utils, self.launcher_cls = Utils(), Launcher
        self.get_current_device, self.set_current_device = torch.cuda.current_device, torch.cuda.set_device
        self.get_current_stream = torch._C._cuda_getCurrentRawStream

    def get_current_target(self) -> GPUTarget:
        major, minor = torch.cuda.get_device_capability()
        return GPUTarget("cuda", 10 * major + minor, 32)

    def get_active_torch_device(self) -> torch.device:
        return torch.device("cuda", self.get_current_device())

    def get_device_interface(self):
        return torch.cuda


def install() -> None:
    """Every kernel of this process, whoever wrote it, is launched on the stub from here on."""
    driver.set_active(Driver())
