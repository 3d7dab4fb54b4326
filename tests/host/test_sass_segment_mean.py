"""segment_mean's machine code: how little it issues for a pixel, and how much it keeps in flight.

Bounds leave about a quarter above what nvcc 13.0 makes for sm_90.
"""

import heapq
import re
import shutil

import pytest
import sass

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("nvcc") is None, reason="no nvcc on the path: the CUDA compiler is not installed"),
]

SHARED_OF_SM = 228 * 1024  # bytes of an H100's multiprocessor; each block takes another 1 KiB of it
REGISTERS_OF_SM = 65536
S = 118  # segments in training


@pytest.fixture(scope="module")
def forward(tmp_path_factory):
    return {k.name: k for k in sass.compile_source("segment_mean", tmp_path_factory.mktemp("sass"))}


@pytest.fixture(scope="module")
def backward(tmp_path_factory):
    return {k.name: k for k in sass.compile_source("segment_mean_backward", tmp_path_factory.mktemp("sass"))}


def shortest_turn(kernel, loop, pattern="", least=0):
    """Instructions of the shortest way once round `loop` that meets `pattern` at least `least` times."""
    first, last = loop
    place = {i.address: n for n, i in enumerate(kernel.instructions)}
    queue, seen = [(0, place[first], 0)], set()
    while queue:
        length, n, met = heapq.heappop(queue)
        if (n, met) in seen:
            continue
        seen.add((n, met))
        i = kernel.instructions[n]
        met = min(least, met + bool(re.match(pattern, i.opcode)))
        target = re.search(r"0x([0-9a-f]+)$", i.operands) if i.opcode.startswith("BRA") else None
        after = [] if target and not i.predicate else [n + 1]
        if target:
            after.append(place[int(target[1], 16)])
        if i.opcode == "EXIT" and not i.predicate:
            continue
        for m in after:
            if m == place[first] and met >= least:
                return length + 1
            if first <= kernel.instructions[m].address <= last:
                heapq.heappush(queue, (length + 1, m, met))
    raise AssertionError("no way round the loop")


def loop_with(kernel, **least):
    """The shortest loop that has so many of each kind of instruction."""
    return next(
        loop for loop in kernel.loops() if all(kernel.count(kind + r"(\.|$)", *loop) >= n for kind, n in least.items())
    )


def blocks_of_an_sm(kernel, threads, dynamic):
    """Blocks an H100's multiprocessor holds at once."""
    registers = -(-kernel.registers // 8) * 8 * threads
    return min(REGISTERS_OF_SM // registers, SHARED_OF_SM // (dynamic + 1024), 2048 // threads)


def test_channels_last_forward_issues_little_for_a_pixel(forward):
    """32 pixels of 64 channels in one run take 317 instructions; one channel a lane, each loaded for itself, 1,300."""
    kernel = forward["segment_mean_pixels_kernel<__nv_bfloat16, 2>"]
    sixteen_pixels, turn = loop_with(kernel, LDS=16, SHFL=16), loop_with(kernel, LDGSTS=8, SHFL=18)
    in_one_run = shortest_turn(kernel, turn, "LDGSTS", 8) + shortest_turn(kernel, sixteen_pixels, "LDS", 16)
    assert in_one_run <= 380


def test_channels_last_forward_copies_whole_lines_past_the_registers(forward):
    for value, per_lane in (("__nv_bfloat16", 2), ("__half", 2), ("float", 1)):
        kernel = forward[f"segment_mean_pixels_kernel<{value}, {per_lane}>"]
        copies = [i.opcode for i in kernel.instructions if i.opcode.startswith("LDGSTS")]
        assert copies
        assert all("BYPASS.128" in opcode for opcode in copies)
        assert kernel.registers <= 80
        assert kernel.stack == 0


def test_channels_last_forward_keeps_enough_in_flight(forward):
    """3.0 TB/s for 700 ns are 16 KiB a multiprocessor. Three of the four slots of a warp, 4 KiB each, are under way."""
    kernel = forward["segment_mean_pixels_kernel<__nv_bfloat16, 2>"]
    waits = [i.operands for i in kernel.instructions if i.opcode.startswith("DEPBAR") and "SB0, 0x" in i.operands]
    under_way = {int(operands.rsplit("0x")[-1], 16) for operands in waits}
    assert len(under_way) == 1
    slots = under_way.pop() + 2
    warps, slot = 4, 32 * 64 * 2
    blocks = blocks_of_an_sm(kernel, warps * 32, warps * (slots * slot + S * 64 * 4) + S * 4)
    assert blocks * warps * (slots - 1) * slot >= 40 * 1024


def test_one_channel_a_lane_has_two_blocks_a_multiprocessor(forward):
    for value in ("__nv_bfloat16", "float"):
        kernel = forward[f"segment_mean_pixels_kernel<{value}, 1>"]
        assert blocks_of_an_sm(kernel, 128, 4 * (8192 + S * 32 * 4) + S * 4) >= 2


def test_planes_forward_reads_chunks_and_has_two_blocks_a_multiprocessor(forward):
    for value in ("__nv_bfloat16", "float"):
        kernel = forward[f"segment_mean_planes_kernel<{value}>"]
        assert kernel.count(r"LDG\.E\.EF\.128") == 32  # eight before the loop, eight in it, each also for ends
        assert kernel.stack == 0
        assert blocks_of_an_sm(kernel, 128, 4 * (4096 + S * 32 * 4) + S * 4) >= 2


def test_the_division_has_its_loads_in_flight_together(forward):
    kernel = forward["segment_mean_divide_kernel"]
    assert kernel.longest_run("LDG") == 8  # the sums and the counts of four splits
    assert kernel.registers <= 40


def test_backward_stores_16_bytes_at_a_time(backward):
    """The compiler took the planes' stores apart into four of 4 bytes each, where it was free to."""
    for value, narrow in (("__nv_bfloat16", "STG.E.U16"), ("__half", "STG.E.U16"), ("float", "STG.E")):
        kernel = backward[f"segment_mean_backward_planes_kernel<{value}, true>"]
        stores = [i.opcode for i in kernel.instructions if i.opcode.startswith("STG")]
        assert set(stores) == {"STG.E.128", narrow}  # narrow ones at the ends of a plane
        assert stores.count("STG.E.128") == 4
        assert kernel.registers <= 96
        assert kernel.stack == 0
    for name in ("<__nv_bfloat16, 8>", "<__half, 8>", "<float, 4>"):
        kernel = backward[f"segment_mean_backward_pixels_kernel{name}"]
        assert kernel.count("STG") == kernel.count(r"STG\.E\.128$")


def test_backward_loads_segments_and_gradients_together(backward):
    planes = backward["segment_mean_backward_planes_kernel<__nv_bfloat16, true>"]
    assert planes.longest_run("LDG") == 8  # a chunk's segments
    fill = loop_with(planes, LDG=16, STS=8)
    last_load = max(
        i.address for i in planes.instructions if i.opcode.startswith("LDG") and fill[0] <= i.address <= fill[1]
    )
    assert planes.count("MUFU", fill[0], last_load) == 0  # all of a table's loads before its first division


def test_channels_last_backward_issues_little_for_a_run(backward):
    """A new run of eight channels took 137 instructions, its eight divisions included; four pixels more took 20."""
    kernel = backward["segment_mean_backward_pixels_kernel<__nv_bfloat16, 8>"]
    run = loop_with(kernel, MUFU=8)
    assert shortest_turn(kernel, run, "MUFU", 8) <= 170
    assert kernel.count(r"LDG\.E\.128", *run) == 2
    assert kernel.count("LDG", *run) == 2  # no count: it was loaded with the segment
    assert shortest_turn(kernel, loop_with(kernel, STG=4)) <= 25
