"""The stub itself: what a GPU would refuse it refuses, and what a graph would get wrong it reports."""

import ctypes
import os
import signal
import subprocess
import sys

import pytest
import stub_gpu
import torch
import triton
import triton.language as tl
from stub_steps import batches, make_trainer

from simfast.testing import determinism
from simfast.training.capture import CannotCapture

RUNTIME = ctypes.CDLL(None)


def host_read(trainer):
    next(trainer.model.parameters()).detach().sum().item()


def pageable_copy(trainer):
    torch.tensor([1.0, 2.0]).to(trainer.device)


def pinned_copy(trainer):
    torch.ones(4).pin_memory().to(trainer.device, non_blocking=True)


def other_stream(trainer):
    with torch.cuda.stream(torch.cuda.default_stream()):
        next(trainer.model.parameters()).detach().add_(0)


def synchronise(trainer):
    torch.cuda.synchronize()


def size_of_values(trainer):
    next(trainer.model.parameters()).nonzero()


def allocate(trainer):
    pointer = ctypes.c_void_p()
    if RUNTIME.cudaMalloc(ctypes.byref(pointer), ctypes.c_size_t(4096)):
        raise RuntimeError("a library's own cudaMalloc failed")


def not_deterministic(trainer):
    x = torch.ones(1, 1, 4, 4, device=trainer.device, requires_grad=True)
    torch.nn.functional.interpolate(x, (8, 8), mode="bicubic", align_corners=True).sum().backward()


def nothing(trainer):
    pass


@pytest.mark.parametrize(
    ("work", "error", "violation"),
    [
        (nothing, None, None),
        (host_read, "not permitted when stream is capturing", "captured copy DtoH"),
        (pageable_copy, "unless the CPU tensor is pinned", None),  # torch's own
        (pinned_copy, None, "captured copy HtoD of 16 bytes"),
        (other_stream, None, "on a stream that is not captured, in a capture"),
        (synchronise, "not permitted when stream is capturing", "cudaDeviceSynchronize in a capture"),
        (size_of_values, "not permitted when stream is capturing", None),
        (allocate, "own cudaMalloc failed", "cudaMalloc in a capture"),
        (not_deterministic, "does not have a deterministic implementation", None),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_a_step_that_does_what_a_graph_cannot_is_refused_or_reported(work, error, violation, monkeypatch, seen):
    trainer, batch = make_trainer("cuda", "graph", "bf16"), next(batches(1, "cuda"))
    optimise = trainer.optimizers.step

    def worse():
        if torch.cuda.is_current_stream_capturing() or error is None or "deterministic" in error:
            work(trainer)
        optimise()

    monkeypatch.setattr(trainer.optimizers, "step", worse)
    with determinism(True):
        if error is None:
            trainer.step(0, *batch)
        else:
            with pytest.raises(CannotCapture) as caught:
                trainer.step(0, *batch)
            assert error in messages(caught.value)
    found = seen().violations
    assert any(violation in what for what in found) if violation else not found or error


def test_an_error_while_regions_are_found_beside_ends_the_capture_as_it_should(monkeypatch, seen):
    trainer = make_trainer("cuda", "graph", "bf16")
    backward = trainer.optimizers.backward

    def worse(loss):
        if torch.cuda.is_current_stream_capturing():
            raise MemoryError("no memory beside")
        backward(loss)

    monkeypatch.setattr(trainer.optimizers, "backward", worse)
    # No other error came of it.
    with determinism(True), pytest.raises(CannotCapture, match=r"CUDA graph: no memory beside$"):
        trainer.step(0, *next(batches(1, "cuda")))
    assert seen().violations == []


def messages(error: BaseException | None) -> str:
    """Of an error and of all that it came of."""
    return "" if error is None else f"{error}\n{messages(error.__context__)}"


def test_an_eager_step_is_free_to_read_and_is_seen_to(seen):
    x = torch.ones(3, device="cuda")
    x.sum().item()
    x.to("cpu")
    torch.ones(5).to("cuda")
    torch.ones(5).pin_memory().to("cuda", non_blocking=True)
    copies = seen().names("memcpy")
    assert copies["HtoD pageable"] == copies["HtoD"] == 1
    assert copies["DtoH pageable"] >= 1
    assert seen().total("sync") >= 3
    assert seen().violations == []


def capture(work) -> None:
    stream, graph = torch.cuda.Stream(), torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        work(stream)


def test_a_stream_that_forks_from_a_capture_and_joins_it_again_is_in_the_graph(seen):
    x, other = torch.ones(3, device="cuda"), torch.cuda.Stream()

    def work(stream):
        other.wait_stream(stream)
        with torch.cuda.stream(other):
            x.add_(1)
        x.mul_(2)
        stream.wait_stream(other)

    capture(work)
    assert seen().violations == []
    assert seen().nodes.total() == 2


def test_a_stream_that_does_not_join_again_ends_the_capture(seen):
    x, other = torch.ones(3, device="cuda"), torch.cuda.Stream()

    def work(stream):
        other.wait_stream(stream)
        with torch.cuda.stream(other):
            x.add_(1)

    with pytest.raises(RuntimeError, match="unjoined work"):
        capture(work)


def test_a_captured_stream_that_waits_for_another_ends_the_capture():
    event = torch.cuda.Event()
    event.record(torch.cuda.Stream())
    with pytest.raises(RuntimeError, match=r"previous error during capture|uncaptured work"):
        capture(lambda stream: stream.wait_event(event))


def test_launches_keep_to_the_device_s_limits(seen):
    class Dim3(ctypes.Structure):
        _fields_ = [("x", ctypes.c_uint), ("y", ctypes.c_uint), ("z", ctypes.c_uint)]

    def launch(grid, block, shared=0):
        kernel = ctypes.c_void_p(1)
        return RUNTIME.cudaLaunchKernel(kernel, Dim3(*grid), Dim3(*block), None, ctypes.c_size_t(shared), None)

    assert launch((1, 1, 1), (1024, 1, 1), 48 << 10) == 0
    assert seen().violations == []
    for wrong in [((0, 1, 1), (1, 1, 1)), ((1, 65536, 1), (1, 1, 1)), ((1, 1, 1), (1025, 1, 1))]:
        assert launch(*wrong) == 9
    assert launch((1, 1, 1), (32, 1, 1), 49 << 10) == 1
    assert len(seen().violations) == 4
    RUNTIME.cudaGetLastError()


def test_a_function_that_the_stub_does_not_have_tells_its_name(capfd):
    assert RUNTIME.cudaMallocManaged(None, 0, 0) == 801
    assert "cudaMallocManaged is not implemented" in capfd.readouterr().err
    assert stub_gpu.seen().violations == ["cudaMallocManaged is not implemented"]
    stub_gpu.reset()


def test_a_host_that_reads_the_device_s_memory_dies():
    x = torch.ones(3, device="cuda")
    child = os.fork()
    if child == 0:
        signal.signal(signal.SIGSEGV, signal.SIG_DFL)
        ctypes.string_at(x.data_ptr(), 4)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    assert os.WTERMSIG(status) == signal.SIGSEGV


@triton.jit
def plus_one_kernel(x, n, BLOCK: tl.constexpr):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(x + at, tl.load(x + at, mask=at < n) + 1, mask=at < n)


@triton.jit
def wrong_for_one_kernel(x, n):
    tl.store(x, n.to(tl.int64))


def test_triton_compiles_what_is_launched_and_the_launch_is_on_the_current_stream(seen):
    x, stream = torch.ones(100, device="cuda"), torch.cuda.Stream()
    with stub_gpu.traced(), torch.cuda.stream(stream):
        compiled = plus_one_kernel[(1,)](x, 100, BLOCK=128)
        y = torch.ones(1, device="cuda")
    assert "sm_90" in compiled.asm["ptx"]
    launches = {kind: on for on, kind, _ in seen().trace if kind in ("triton", "kernel")}
    assert launches["triton"] == launches["kernel"] != 0
    assert seen().names("triton") == {"plus_one_kernel": 1}
    del y


def test_triton_specialises_as_on_a_gpu():
    x = torch.zeros(1, dtype=torch.int64, device="cuda")
    wrong_for_one_kernel[(1,)](x, 2)
    with pytest.raises(triton.CompilationError):  # an argument that is 1 is a constant
        wrong_for_one_kernel[(1,)](x, 1)


def test_triton_takes_no_host_memory():
    with pytest.raises(ValueError, match="cannot be accessed from Triton"):
        plus_one_kernel[(1,)](torch.ones(100), 100, BLOCK=128)


def test_nothing_needs_a_context_until_something_does():
    import subprocess

    code = "import torch, stub_gpu; torch.cuda.is_available(); print(stub_gpu.seen().context); "
    code += "torch.ones(1).pin_memory(); print(stub_gpu.seen().context)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["None", "cudaHostAlloc"]


def test_what_a_program_starts_is_on_the_stub_too():
    code = "import torch; from triton.runtime.driver import driver; print(driver.active.__module__)"
    code += "; print(torch.cuda.device_count(), torch.backends.cudnn.version() > 90000)"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert found.split() == ["stub_triton", "1", "True"]
