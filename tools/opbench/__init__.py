"""The parts of ``tools/bench_ops.py``: what is timed, against what, how, and how it is told."""
