"""Runs the CUDA kernels under compute-sanitizer's four tools over the shapes of tests/ops/cpp/scan_cuda.cpp.

    python tools/sanitize.py                       # builds the program against the active library
    python tools/sanitize.py --program scan_cuda   # runs one that was built elsewhere

Exits with 1 if a tool reports anything or the kernels' answers are wrong.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

TOOLS = ("memcheck", "racecheck", "initcheck", "synccheck")
SOURCES = Path(__file__).resolve().parents[1] / "tests" / "ops" / "cpp"
FINDINGS = 9


def build(folder: Path) -> Path:
    """Compiles the program into ``folder``."""
    from cgspn.ops import library

    options = [f"-Dcgspn_DIR={library.cmake_dir()}", "-DCMAKE_BUILD_TYPE=Release"]
    for command in (
        ["cmake", "-S", str(SOURCES), "-B", str(folder), *options],
        ["cmake", "--build", str(folder)],
    ):
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return folder / "scan_cuda"


def run(sanitizer: str, tool: str, program: Path, limit_s: float) -> str:
    """Runs one tool and returns what it found, empty if nothing."""
    command = [sanitizer, "--tool", tool, "--error-exitcode", str(FINDINGS)]
    # Lines that several blocks share use more barriers than the tool tracks by default.
    command += ["--num-cuda-barriers", "65536"] if tool == "synccheck" else []
    command += [str(program), *(["--fresh"] if tool == "initcheck" else [])]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=limit_s)
    except subprocess.TimeoutExpired as error:
        output = error.stdout or b""
        return f"no end after {limit_s:.0f} s; last: {output.decode(errors='replace').splitlines()[-1:]}"
    if done.returncode == 0:
        return ""
    interesting = [line for line in done.stdout.splitlines() if not line.startswith("ok ")]
    return f"exit code {done.returncode}\n" + "\n".join(interesting[-40:]) + done.stderr[-2000:]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--program", type=Path, help="a scan_cuda built before")
    parser.add_argument("--tools", nargs="+", choices=TOOLS, default=list(TOOLS))
    parser.add_argument("--limit", type=float, default=300, help="seconds for one tool")
    args = parser.parse_args()
    sanitizer = shutil.which("compute-sanitizer") or "/usr/local/cuda/bin/compute-sanitizer"
    if not Path(sanitizer).is_file():
        parser.error("compute-sanitizer was not found; it comes with the CUDA toolkit")
    with tempfile.TemporaryDirectory() as folder:
        program = args.program.resolve() if args.program else build(Path(folder))
        found = False
        for tool in args.tools:
            start = time.perf_counter()
            report = run(sanitizer, tool, program, args.limit)
            print(f"{tool:10s} {time.perf_counter() - start:5.1f} s  {report or 'nothing found'}", flush=True)
            found |= bool(report)
    sys.exit(int(found))


if __name__ == "__main__":
    main()
