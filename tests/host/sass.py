"""Machine code of the CUDA kernels, as nvcc makes it and the tools of Triton's package show it: no GPU is needed."""

import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import host_build


@dataclass(frozen=True)
class Instruction:
    """One instruction of SASS."""

    address: int
    predicate: str
    """As written, "@!P0"; empty where it runs always."""
    opcode: str
    """With its suffixes, "LDG.E.CONSTANT"."""
    operands: str


@dataclass(frozen=True)
class Kernel:
    """One kernel's machine code, and what a block of it takes."""

    name: str
    instructions: list[Instruction]
    registers: int
    stack: int
    shared: int

    def count(self, pattern: str, first: int = 0, last: int | None = None) -> int:
        """Instructions whose opcode begins with a match of `pattern`, at addresses first..last."""
        last = self.instructions[-1].address if last is None else last
        return sum(first <= i.address <= last and bool(re.match(pattern, i.opcode)) for i in self.instructions)

    def loops(self) -> list[tuple[int, int]]:
        """First and last address of every loop, innermost (shortest) first."""
        found = []
        for i in self.instructions:
            target = re.search(r"0x([0-9a-f]+)", i.operands) if i.opcode.startswith("BRA") else None
            if target and int(target[1], 16) < i.address:
                found.append((int(target[1], 16), i.address))
        return sorted(found, key=lambda loop: loop[1] - loop[0])

    def longest_run(self, pattern: str, ends: str = r"STS|ST\.|STG|BAR|BRA|EXIT") -> int:
        """The most instructions that match `pattern` before one that matches `ends`: loads in flight together."""
        longest = current = 0
        for i in self.instructions:
            if re.match(ends, i.opcode):
                current = 0
            elif re.match(pattern, i.opcode):
                current += 1
                longest = max(longest, current)
        return longest


def tool(name: str) -> str:
    """Path of cuobjdump or nvdisasm: CUDA's own, or the one that Triton brings."""
    found = shutil.which(name)
    if found is None:
        import triton.backends.nvidia

        found = str(Path(triton.backends.nvidia.__path__[0], "bin", name))
    return found


def compile_source(source: str, folder: Path, architecture: int = 90, csrc: Path = host_build.CSRC) -> list[Kernel]:
    """Kernels of csrc/cuda/<source>.cu, compiled as the library is; the cubin is left in `folder`."""
    cubin = folder / f"{source}-{architecture}.cubin"
    command = ["nvcc", "-std=c++17", "-O3", "-DNDEBUG", "-cubin", f"-arch=sm_{architecture}", f"-I{csrc}"]
    subprocess.run([*command, str(csrc / "cuda" / f"{source}.cu"), "-o", str(cubin)], check=True, capture_output=True)
    return kernels(cubin)


def kernels(cubin: Path) -> list[Kernel]:
    """All kernels of a cubin."""
    usage = subprocess.run([tool("cuobjdump"), "-res-usage", cubin], capture_output=True, text=True, check=True).stdout
    code = subprocess.run([tool("cuobjdump"), "-sass", cubin], capture_output=True, text=True, check=True).stdout
    found = []
    for part in code.split("Function : ")[1:]:
        name = part.split("\n", 1)[0].strip()
        resources = re.search(
            rf"Function {re.escape(name)}:\s+REG:(\d+) STACK:(\d+) SHARED:(\d+)", usage
        )  # the linker's order differs
        instructions = [
            Instruction(int(address, 16), predicate or "", opcode, operands.strip())
            for address, predicate, opcode, operands in re.findall(
                r"^\s+/\*([0-9a-f]{4,})\*/\s+(@!?U?P\w+)?\s*([A-Z][\w.]*)\s*([^;]*);", part, re.MULTILINE
            )
        ]
        found.append(Kernel(demangled(name), instructions, *(int(n) for n in resources.groups())))
    return found


def demangled(name: str) -> str:
    """A kernel's name as C++ writes it, without its parameters."""
    shown = subprocess.run(["c++filt", name], capture_output=True, text=True, check=True).stdout.strip()
    return re.sub(r"\(anonymous namespace\)::|simfast::|^void ", "", shown).split("(")[0]


def main() -> None:
    """`python tests/host/sass.py SOURCE [ARCHITECTURE]`: a line for each kernel, and its loops."""
    import sys
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        for k in compile_source(sys.argv[1], Path(folder), int(sys.argv[2]) if len(sys.argv) > 2 else 90):
            print(f"{k.name}: {len(k.instructions)} instructions, {k.registers} registers, {k.stack} B of stack")
            for first, last in k.loops():
                kinds = ("LDG", "STG", "LDS", "STS", "ATOM", "BAR", "SHFL")
                counts = " ".join(f"{kind} {n}" for kind in kinds if (n := k.count(kind, first, last)))
                print(f"  {first:#06x}-{last:#06x} {k.count('', first, last):5d}  {counts}")


if __name__ == "__main__":
    main()
