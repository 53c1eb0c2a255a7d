import io
import tarfile

import numpy as np
import pytest
from PIL import Image


def _jpeg(value, size=(16, 16)):
    """A JPEG file of one brightness, which tells samples apart."""
    buffer = io.BytesIO()
    Image.fromarray(np.full((*size, 3), value, np.uint8)).save(buffer, "JPEG", quality=95)
    return buffer.getvalue()


def _write_tar(path, members, mode="w"):
    with tarfile.open(path, mode) as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))


@pytest.fixture(scope="session")
def jpeg():
    return _jpeg


@pytest.fixture(scope="session")
def write_tar():
    return _write_tar


@pytest.fixture
def shards(tmp_path):
    """Four shards of six samples: picture k has brightness 10 k, caption 'number k' and class k % 3."""
    for shard in range(4):
        members = {}
        for k in range(6 * shard, 6 * shard + 6):
            members[f"{k:05d}.jpg"] = _jpeg(10 * k)
            members[f"{k:05d}.txt"] = f"number {k}".encode()
            members[f"{k:05d}.cls"] = str(k % 3).encode()
        _write_tar(tmp_path / f"part-{shard:02d}.tar", members)
    return str(tmp_path / "part-{00..03}.tar")
