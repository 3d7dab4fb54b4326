"""The Triton kernels of batch_norm_act without a GPU: run by Triton's interpreter, and compiled to machine code.

The same kernels on a GPU: test_batch_norm_act.py.
"""

import os
import subprocess
import sys

import pytest
import torch

from simfast import reference

# ----------------------------------------------------------------------------------------------------------------------
# Interpreted. Triton decides on import whether to interpret, so that this takes a process of its own: this very file.
# ----------------------------------------------------------------------------------------------------------------------


def test_interpreted_kernels_equal_the_reference():
    environment = os.environ | {"TRITON_INTERPRET": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, __file__], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]
    assert done.stdout.split() == [case.__name__ for case in INTERPRETED]


def make(shape, dtype=torch.float32, residual=False, offset=0.0, seed=0):
    """Maps, vectors, running statistics and two gradients; zeros and ties at the ReLU's edge included."""
    g = torch.Generator().manual_seed(seed)
    channels = shape[1]

    def draw():
        return torch.randn(shape, generator=g).to(dtype).contiguous(memory_format=torch.channels_last)

    x = (draw().float() * torch.rand(channels, generator=g)[:, None, None] * 3 + offset).to(dtype)
    x = x.contiguous(memory_format=torch.channels_last)
    weight = torch.rand(channels, generator=g) + 0.5
    bias = torch.randn(channels, generator=g) * 0.5
    running = torch.randn(channels, generator=g), torch.rand(channels, generator=g) + 0.5
    return x, draw() if residual else None, weight, bias, running, (draw(), draw())


# Of values near 1: float32's sums, and a rounding of the others; the interpreter truncates to bfloat16.
TOLERANCE = {torch.float32: 2e-5, torch.float16: 2e-3, torch.bfloat16: 4e-2}


def close(found, expected, tolerance, what):
    torch.testing.assert_close(
        found.double(), expected.double(), rtol=tolerance, atol=tolerance, msg=lambda text: f"{what}: {text}"
    )


def check(
    shape, dtype=torch.float32, residual=False, relu=True, training=True, affine=True, again=True, one=False, **more
):
    """Output, gradients and running statistics are the reference's. one: in one launch each way."""
    from simfast.ops import batch_norm_act_triton as ours

    x, added, weight, bias, running, (grad, second) = make(shape, dtype, residual, **more)
    expected_running, act = [r.clone() for r in running], "relu" if relu else "none"
    leaves = [t.detach().requires_grad_() for t in (x, added, weight, bias) if t is not None]
    wanted = [*leaves[:1], *(leaves[1:2] if residual else [None]), *leaves[-2:]]
    expected = reference.batch_norm_act(wanted[0], *expected_running, *wanted[2:], wanted[1], act, training)
    total = grad.float() + second.float() if again else grad.float()
    gradients = torch.autograd.grad(expected, leaves, total.to(dtype))

    tolerance = TOLERANCE[dtype]
    norm = weight, bias, added, relu
    if training:
        y, mean, var = ours.forward(x, *running, *norm, 0.1, 1e-5, None, 0, one)
        for found, known in zip(running, expected_running, strict=True):
            close(found, known, 2e-5, "running statistics")
    else:
        mean, var = running
        y = ours.apply(x, mean, var, *norm, 1e-5)
    close(y, expected, tolerance, "output")
    assert y.is_contiguous(memory_format=torch.channels_last)
    if training:
        assert torch.equal(ours.apply(x, mean, var, *norm, 1e-5), y)
    kept = y if residual and relu else None
    options = relu, training, 1e-5, residual, affine, one
    found = ours.backward(grad, second if again else None, x, kept, mean, var, weight, bias, *options)
    names = ["x", *(["residual"] if residual else []), "weight", "bias"]
    found = [found[0], *([found[1]] if residual else []), *found[2:]]
    for name, one, known in zip(names, found, gradients, strict=True):
        if name in ("weight", "bias"):
            if not affine:
                continue
            close(one / len(x[:, 0].flatten()), known / len(x[:, 0].flatten()), tolerance, name)
        else:
            close(one, known, 2 * tolerance if again else tolerance, f"gradient of {name}")


def every_kind():
    for residual in (False, True):
        for relu in (False, True):
            for training in (False, True):
                for affine in (False, True):
                    check((2, 20, 3, 5), residual=residual, relu=relu, training=training, affine=affine)


def one_launch_does_what_two_do():
    """Of one stretch: the interpreter runs a program after the other, and none of several could wait."""
    from simfast.ops import batch_norm_act_triton as ours

    semaphores = torch.zeros(2, dtype=torch.int32)

    def given(tiling, x):
        assert tiling.stretches == 1
        return semaphores

    ours._Tiling.semaphores, before = given, ours._Tiling.semaphores
    try:
        for residual in (False, True):
            for relu in (False, True):
                check((1, 20, 3, 5), residual=residual, relu=relu, one=True)
        check((1, 72, 3, 5), torch.bfloat16, residual=True, one=True)
    finally:
        ours._Tiling.semaphores = before


def every_dtype():
    for dtype in (torch.float16, torch.bfloat16):
        for residual in (False, True):
            check((1, 64, 5, 11), dtype, residual)
        check((1, 64, 5, 3), dtype, True, training=False, affine=False)


def sizes():
    for shape in ((1, 1, 1, 2), (1, 3, 1, 5), (2, 19, 3, 3), (3, 130, 2, 1), (1, 520, 1, 3)):
        check(shape, residual=True)
    check((1, 64, 20, 45), residual=True)  # whole groups, and more than one stretch
    check((1, 7, 33, 77), again=False)
    check((1, 1, 1, 1), training=False)


def a_mean_far_above_the_deviation_loses_nothing():
    from simfast.ops import batch_norm_act_triton as ours

    x = torch.randn((1, 32, 30, 31), generator=torch.Generator().manual_seed(0)) * 0.01 + 1000
    x[0, :, 0, 0] = 0  # a corner beside padding
    x = x.contiguous(memory_format=torch.channels_last)
    ones, zeros = torch.ones(32), torch.zeros(32)
    _, mean, var = ours.forward(x, None, None, ones, zeros, None, False, 0.1, 1e-5, None, 0)
    exact = x.double().flatten(2)
    close(mean, exact.mean(2)[0], 1e-6, "mean")
    close(var / exact.var(2, correction=0)[0], torch.ones(32), 1e-4, "variance")
    _, mean, var = ours.forward(x[:, :, 1:], None, None, ones, zeros, None, False, 0.1, 1e-5, None, 0)
    exact = x[:, :, 1:].double().flatten(2)
    close(var / exact.var(2, correction=0)[0], torch.ones(32), 2e-2, "variance of values of 14 bits")


def nan_stays_in_its_channel_and_zero_is_cut():
    from simfast.ops import batch_norm_act_triton as ours

    x, _, weight, bias, _, (grad, _) = make((1, 16, 4, 4))
    x[0, 3, 1, 1] = torch.nan
    y, mean, var = ours.forward(x, None, None, weight, bias, None, True, 0.1, 1e-5, None, 0)
    wrong = torch.arange(16) == 3
    assert torch.equal(y.isnan().all(2).all(2)[0], wrong)
    assert torch.equal(y.isnan().any(2).any(2)[0], wrong)
    constant = torch.full((1, 16, 4, 4), 5.0).contiguous(memory_format=torch.channels_last)
    zeros = torch.zeros(16)
    y, mean, var = ours.forward(constant, None, None, weight, zeros, None, True, 0.1, 1e-5, None, 0)
    assert not y.any()
    assert not var.any()
    found = ours.backward(grad, None, constant, None, mean, var, weight, zeros, True, True, 1e-5, False, True)
    assert not any(gradient.any() for gradient in found)  # the output is 0: ReLU's gradient is, too


def statistics_that_are_given_are_those_used():
    from simfast.ops import batch_norm_act_triton as ours

    x, _, weight, bias, _, _ = make((2, 48, 7, 9))
    pixels = x.permute(0, 2, 3, 1).reshape(-1, 48)
    for rows in (1, 50, 126, 200):
        stretches = pixels.split(rows)
        partials = torch.stack(
            [
                torch.stack([s.mean(0) for s in stretches]),
                torch.stack([(s - s.mean(0)).square().sum(0) for s in stretches]),
            ]
        )
        _, mean, var = ours.forward(x, None, None, weight, bias, None, True, 0.1, 1e-5, partials, rows)
        close(mean, pixels.mean(0), 1e-6, "mean")
        close(var, pixels.var(0, correction=0), 1e-5, "variance")


def what_is_not_written_shows():
    """Every output is written whole: what an allocation holds is poison."""
    real = torch.Tensor.new_empty, torch.empty_like

    def poisoned(make):
        def call(*args, **options):
            x = make(*args, **options)
            return x.fill_(torch.nan) if x.is_floating_point() else x

        return call

    torch.Tensor.new_empty, torch.empty_like = map(poisoned, real)
    try:
        check((2, 19, 5, 7), residual=True)
        check((1, 64, 20, 29), residual=True)
        check((1, 64, 3, 9), residual=True, training=False, affine=False)
    finally:
        torch.Tensor.new_empty, torch.empty_like = real


INTERPRETED = [
    every_kind,
    one_launch_does_what_two_do,
    every_dtype,
    sizes,
    a_mean_far_above_the_deviation_loses_nothing,
    nan_stays_in_its_channel_and_zero_is_cut,
    statistics_that_are_given_are_those_used,
    what_is_not_written_shows,
]

# ----------------------------------------------------------------------------------------------------------------------
# Compiled: what the JIT makes of a call's very arguments
# ----------------------------------------------------------------------------------------------------------------------

compiled = pytest.mark.skipif(
    os.environ.get("TRITON_INTERPRET") == "1", reason="TRITON_INTERPRET is set: nothing is compiled"
)
F32, F16, BF16 = torch.float32, torch.float16, torch.bfloat16


def launches(capability, shape, dtype, residual, one, monkeypatch, training=True, affine=False):
    """Those of a forward and a backward pass; of two consumers where there is a residual, as in a network."""
    from triton_launches import compiled_launches

    from simfast.ops import batch_norm_act_triton as ours

    monkeypatch.setattr(ours._Tiling, "semaphores", lambda tiling, x: torch.zeros(64, dtype=torch.int32))
    x, added, weight, bias, running, (grad, second) = make(shape, dtype, residual)
    norm = weight, bias, added, True
    with compiled_launches(capability) as noted:
        if training:
            y, mean, var = ours.forward(x, *running, *norm, 0.1, 1e-5, None, 0, one)
        else:
            mean, var = running
            y = ours.apply(x, mean, var, *norm, 1e-5)
        kept = y if residual or not training else None
        options = True, training, 1e-5, residual, affine, one
        ours.backward(grad, second if residual else None, x, kept, mean, var, weight, bias, *options)
    return noted


KINDS = [(capability, BF16, True) for capability in (80, 90, 100, 120)] + [(90, BF16, False), (90, F32, True)]


@compiled
@pytest.mark.parametrize("one", [False, True], ids=["two launches", "one launch"])
@pytest.mark.parametrize(("capability", "dtype", "residual"), KINDS)
def test_loops_load_16_bytes_at_once_and_have_no_barrier(capability, one, residual, dtype, monkeypatch, tmp_path):
    noted = launches(capability, (1, 128, 70, 90), dtype, residual, one, monkeypatch)
    assert len(noted) == (2 if one else 4)
    for launch in noted:
        code = launch.machine_code(tmp_path)
        assert code.stack <= (
            16 if capability == 100 else 0
        )  # it adds two values at a time, and may move them for that
        assert code.registers <= 128  # two programs of eight warps on a multiprocessor: what `one` counts on
        assert code.shared <= 2048
        loops = [(first, last) for first, last in code.loops() if code.count("LDG", first, last)]
        wide = [
            (first, last)
            for first, last in loops
            if any(first <= i.address <= last and "LDG" in i.opcode and ".128" in i.opcode for i in code.instructions)
        ]
        waits = [loop for loop in loops if code.count("LDG.*STRONG", *loop)]
        assert len(waits) == one
        assert wide
        for loop in set(loops) - set(waits):
            assert code.count("BAR|LDS|STS|LDL|STL|ATOM|RED|SHFL", *loop) == 0
        for first, last in wide:
            inside = [i for i in code.instructions if first <= i.address <= last]
            assert all(".128" in i.opcode for i in inside if i.opcode.startswith(("LDG", "STG")))


@pytest.mark.parametrize("channels", [1, 19, 130])
def test_blocks_of_channels_that_are_not_full_take_two_launches(channels):
    """Their masks take more registers than two programs on a multiprocessor have."""
    from simfast.ops import batch_norm_act_triton as ours

    assert ours._Tiling(torch.zeros(1, channels, 3, 3)).semaphores(torch.zeros(1)) is None


@compiled
@pytest.mark.parametrize("one", [False, True])
def test_what_programs_have_stored_is_seen_by_those_that_waited(one, monkeypatch, tmp_path):
    for launch in launches(90, (1, 128, 70, 90), BF16, True, one, monkeypatch):
        code = [i.opcode for i in launch.machine_code(tmp_path).instructions]
        if not one:
            assert not any("ATOM" in opcode for opcode in code)
            continue
        arrives = next(at for at, opcode in enumerate(code) if "ATOMG" in opcode)
        waits = next(at for at, opcode in enumerate(code) if opcode.startswith("LDG") and "STRONG.GPU" in opcode)
        assert any("BAR.SYNC" in opcode for opcode in code[arrives - 30 : arrives])
        assert any("MEMBAR" in opcode and "GPU" in opcode for opcode in code[arrives - 5 : arrives])
        assert arrives < waits
        assert any("CCTL.IVALL" in opcode for opcode in code[waits : waits + 3])  # the first-level cache is emptied
        assert any("BAR.SYNC" in opcode for opcode in code[waits : waits + 10])


@compiled
@pytest.mark.parametrize(
    ("shape", "dtype"), [((1, 1, 1, 2), F32), ((1, 19, 3, 3), F16), ((2, 64, 1, 1), BF16), ((1, 16, 16, 16), F32)]
)
def test_any_call_compiles_without_spills(shape, dtype, monkeypatch, tmp_path):
    for training, affine in ((True, True), (False, False)):
        for launch in launches(90, shape, dtype, True, False, monkeypatch, training, affine):
            assert launch.machine_code(tmp_path).stack == 0


if __name__ == "__main__":
    for case in INTERPRETED:
        case()
        print(case.__name__)
