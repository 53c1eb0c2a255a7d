import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def test_python_of_the_readme_runs():
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    names = {}
    exec(code, names)
    assert names["y"].shape == (1, 64, 37, 53)
