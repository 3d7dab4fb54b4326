"""The tests of this folder can go red: a kernel with a barrier removed, or a rule bent, fails its comparison.

Each mutant is the kernels' own source with one passage replaced, built from a copy. The unchanged source passes the
same comparison, so that a red mutant says something.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import host_build
import pytest

NOTHING = ""

# name: (the case of mutants.py, the source to rebuild, the file to change, passage, replacement)
MUTANTS = {
    "unions start before the runs stand": (
        "components",
        "components",
        "cuda/components.cu",
        "__syncthreads();  // unions look up runs, and climb through entries, of other warps",
        NOTHING,
    ),
    "runs look up roots before the unions end": (
        "components",
        "components",
        "cuda/components.cu",
        "__syncthreads();  // roots are final",
        NOTHING,
    ),
    "pixels are written before the runs have settled": (
        "components",
        "components",
        "cuda/components.cu",
        "__syncthreads();  // entries are final",
        NOTHING,
    ),
    "bytes are overwritten while they are compared": (
        "components",
        "components",
        "cuda/components.cu",
        "if (round > 0) __syncthreads();  // the planes before are read",
        NOTHING,
    ),
    "a union is left to a pixel that does not make it": (
        "components",
        "components",
        "cuda/runs.cuh",
        "straight_links<unsigned>(up, left, alike.before_up)",
        "straight_links<unsigned>(up, left, 1u)",
    ),
    "a unit looks beyond the end of its row": (
        "components",
        "components",
        "cuda/runs.cuh",
        "alike.up_right & unit.with_right & active",
        "alike.up_right & active",
    ),
    "seams skip a tile's corner": (
        "components",
        "components",
        "cuda/tile.cuh",
        "if (along % kTile == 0 || !before ||",
        "if (!before ||",
    ),
    "seams forget the diagonal after": (
        "components",
        "components",
        "cuda/tile.cuh",
        "if (along + 1 < length && diagonal_links",
        "if (false && diagonal_links",
    ),
    "a union loses the link it replaced": (
        "components",
        "components",
        "cuda/union_find.cuh",
        "            if (above == high) return high;",
        "            return above == high ? high : -1;",
    ),
    "a block reuses its sums too early": (
        "components",
        "components",
        "cuda/components.cu",
        "    __syncthreads();\n    if (lane == 31)",
        "    if (lane == 31)",
    ),
    "classes are entered into a table that is being cleared": (
        "regions",
        "regions_small",
        "cuda/classes.cuh",
        "__syncwarp();  // all entries are empty before the first one is filled",
        NOTHING,
    ),
    "a run has no end": (
        "regions",
        "regions_small",
        "cuda/runs.cuh",
        "unit.end = left_over < kUnit ? 1u << left_over : 0u;",
        "unit.end = 0u;",
    ),
    "components are listed before they are measured": (
        "regions",
        "regions_small",
        "cuda/regions_small.cu",
        "__syncthreads();  // areas are final",
        NOTHING,
    ),
    "components are compared before their keys are there": (
        "regions",
        "regions_small",
        "cuda/regions_small.cu",
        "__syncthreads();  // keys stand where the roots were",
        NOTHING,
    ),
    "runs look up slots before they are given": (
        "regions",
        "regions_small",
        "cuda/regions_small.cu",
        "__syncthreads();  // slots are final",
        NOTHING,
    ),
    "pixels look up runs before these have their slots": (
        "regions",
        "regions_small",
        "cuda/regions_small.cu",
        "__syncthreads();  // every entry is final",
        NOTHING,
    ),
    "a tile's areas are handed on before they are final": (
        "regions",
        "regions",
        "cuda/regions.cu",
        "__syncthreads();  // areas are final",
        NOTHING,
    ),
    "maxima are cleared while in use": (
        "regions",
        "regions_small",
        "cuda/regions_small.cu",
        "[(rank + 2) % 3]",
        "[(rank + 1) % 3]",
    ),
    "lost roots keep their area": (
        "regions",
        "regions",
        "cuda/regions.cu",
        "atomicAdd(tile_areas + root, tile_areas[p]);",
        NOTHING,
    ),
    "rows are overwritten while being read": (
        "segment_mean",
        "segment_mean",
        "cuda/segment_sums.cuh",
        "__syncwarp();  // all lanes have read the rows before",
        NOTHING,
    ),
    "all planes are taken to start alike": (
        "segment_mean",
        "segment_mean",
        "cuda/segment_mean.cu",
        "plan.staged ? alignment_classes(a.stride_c, a.features_dtype) : 1",
        "1",
    ),
    "tables are added up before they are full": (
        "segment_mean",
        "segment_mean",
        "cuda/segment_mean.cu",
        "__syncthreads();  // the tables are full",
        NOTHING,
    ),
    "tables are added to before they are clear": (
        "segment_mean",
        "segment_mean",
        "cuda/segment_mean.cu",
        "__syncthreads();  // the tables are clear",
        NOTHING,
    ),
    "pixels are read before their copies land": (
        "segment_mean",
        "segment_mean",
        "cuda/segment_sums.cuh",
        "__pipeline_wait_prior(kSlots - 2);",
        NOTHING,
    ),
    "the wait leaves one slot too many under way": (
        "segment_mean",
        "segment_mean",
        "cuda/segment_sums.cuh",
        "__pipeline_wait_prior(kSlots - 2);",
        "__pipeline_wait_prior(kSlots - 1);",
    ),
    "lanes do not wait for each other's copies": (
        "segment_mean",
        "segment_mean",
        "cuda/segment_sums.cuh",
        "__syncwarp();  // every lane's copies into this slot are there, and every lane has read the slot before",
        NOTHING,
    ),
    "a slot is filled while being read": (
        "segment_mean",
        "segment_mean",
        "cuda/segment_sums.cuh",
        "ring.fill(before);",
        "ring.fill(slot);",
    ),
    "copies belong to no group": (
        "segment_mean",
        "segment_mean",
        "cuda/segment_sums.cuh",
        "__pipeline_commit();",
        NOTHING,
    ),
    "what a sum loses is forgotten": (
        "segment_mean",
        "segment_mean",
        "cuda/segment_sums.cuh",
        "lost += term - (next - sum);",
        NOTHING,
    ),
    "a run is added up in one piece": (
        "segment_mean",
        "segment_mean",
        "cuda/segment_sums.cuh",
        "constexpr int kPiece = 16;",
        "constexpr int kPiece = 1 << 20;",
    ),
    "shares of a mean are added before they stand": (
        "segment_mean",
        "segment_mean",
        "cuda/segment_mean.cu",
        "__syncthreads();  // all shares stand",
        NOTHING,
    ),
    "a ring is listed before its vectors are counted": (
        "rings",
        "ring_write",
        "cuda/ring_write.cu",
        "__syncthreads();  // all counts stand, and all have read the list before",
        NOTHING,
    ),
    "a ring copies before its list stands": (
        "rings",
        "ring_write",
        "cuda/ring_write.cu",
        "__syncthreads();  // the list stands",
        NOTHING,
    ),
    "losses are added before the images have them": (
        "losses",
        "matching_losses",
        "cuda/matching_losses.cu",
        "__syncthreads();  // all images of this round stand",
        NOTHING,
    ),
    "losses are overwritten before they are added": (
        "losses",
        "matching_losses",
        "cuda/matching_losses.cu",
        "__syncthreads();  // they have been added",
        NOTHING,
    ),
    "equal logits give the last class": (
        "rings",
        "select_rings",
        "cuda/select_rings.cu",
        "(0xFFFFFFFFu - static_cast<uint32_t>(place));\n}",
        "static_cast<uint32_t>(place);\n}",
    ),
    "gradients are looked up before they are there": (
        "backward",
        "segment_mean_backward",
        "cuda/segment_mean_backward.cu",
        "        __syncthreads();\n",
        NOTHING,
    ),
}


@pytest.fixture(scope="module")
def status():
    """What mutants.py says about a library and a case: 0 if all is as it must be."""
    paths = os.pathsep.join([str(host_build.CSRC.parent), *sys.path])  # the same simfast as here, installed or not
    environment = os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}  # no threads, for it forks
    command = [sys.executable, str(Path(__file__).with_name("mutants.py"))]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1, env=environment
    ) as process:

        def ask(library: Path, case: str) -> int:
            process.stdin.write(f"{library} {case}\n")
            return int(process.stdout.readline())

        yield ask
        process.stdin.close()


@pytest.mark.parametrize("case", sorted({mutant[0] for mutant in MUTANTS.values()}))
def test_the_unchanged_kernels_pass(case, status):
    assert status(host_build.build(), case) == 0


@pytest.mark.slow
@pytest.mark.parametrize("name", MUTANTS)
def test_a_mutant_fails(name, tmp_path, status):
    case, source, file, passage, replacement = MUTANTS[name]
    csrc = tmp_path / "csrc"
    shutil.copytree(host_build.CSRC, csrc)
    text = (csrc / file).read_text()
    assert text.count(passage) == 1, f"{file}: the passage occurs {text.count(passage)} times"
    (csrc / file).write_text(text.replace(passage, replacement))
    assert status(host_build.build(csrc, changed=(source,)), case) != 0
