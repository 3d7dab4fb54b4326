"""The Triton kernels of batch_norm_act without a GPU: run by Triton's interpreter, and compiled to machine code.

The same kernels on a GPU: test_batch_norm_act.py.
"""

import os
import subprocess
import sys

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
TOLERANCE = {torch.float32: 2e-5, torch.float16: 2e-3, torch.bfloat16: 2.5e-2}


def close(found, expected, tolerance, what):
    torch.testing.assert_close(
        found.double(), expected.double(), rtol=tolerance, atol=tolerance, msg=lambda text: f"{what}: {text}"
    )


def check(shape, dtype=torch.float32, residual=False, relu=True, training=True, affine=True, again=True, **more):
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
        y, mean, var = ours.forward(x, *running, *norm, 0.1, 1e-5, None, 0)
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
    options = relu, training, 1e-5, residual, affine
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
                    check((2, 24, 5, 7), residual=residual, relu=relu, training=training, affine=affine)


def every_dtype():
    for dtype in (torch.float16, torch.bfloat16):
        for residual in (False, True):
            check((2, 64, 9, 11), dtype, residual)
        check((1, 64, 9, 11), dtype, True, training=False, affine=False)


def sizes():
    for shape in ((1, 1, 1, 2), (1, 3, 1, 5), (2, 19, 3, 3), (1, 65, 4, 4), (3, 130, 2, 1), (1, 2048, 1, 3)):
        check(shape, residual=True)
    check((1, 64, 70, 45), residual=True)  # whole groups, and more than one stretch
    check((1, 96, 64, 70), residual=True)
    check((1, 7, 33, 77), again=False)
    check((1, 1, 1, 1), training=False)


def a_mean_far_above_the_deviation_loses_nothing():
    from simfast.ops import batch_norm_act_triton as ours

    x = torch.randn((1, 32, 60, 61), generator=torch.Generator().manual_seed(0)) * 0.01 + 1000
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
        check((1, 64, 33, 35), residual=True)
        check((1, 64, 9, 9), residual=True, training=False, affine=False)
    finally:
        torch.Tensor.new_empty, torch.empty_like = real


INTERPRETED = [
    every_kind,
    every_dtype,
    sizes,
    a_mean_far_above_the_deviation_loses_nothing,
    nan_stays_in_its_channel_and_zero_is_cut,
    statistics_that_are_given_are_those_used,
    what_is_not_written_shows,
]

if __name__ == "__main__":
    for case in INTERPRETED:
        case()
        print(case.__name__)
