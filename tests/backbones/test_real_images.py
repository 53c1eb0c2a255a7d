import io
import tarfile

import numpy as np
import pytest
import torch
from PIL import Image

from cgspn.registry import BACKBONES


@pytest.fixture(scope="module")
def photographs(real_data):
    """Two photographs."""
    with tarfile.open(real_data / "imagenet_samples" / "train-0000.tar") as shard:
        names = [name for name in shard.getnames() if name.lower().endswith((".jpg", ".jpeg", ".png"))][:2]
        return [Image.open(io.BytesIO(shard.extractfile(name).read())).convert("RGB") for name in names]


@pytest.mark.parametrize(("height", "width"), [(378, 378), (378, 500)], ids=["378", "not_square"])
@pytest.mark.parametrize("operator", ["cgspn", "attention"])
def test_features_of_photographs(photographs, operator, height, width):
    encoder = BACKBONES.build(
        {"type": "cgspn_tiny_patch16", "patch_size": 14, "operator": {"type": operator}}
    )
    arrays = [np.asarray(photograph.resize((width, height))) / 255 for photograph in photographs]
    images = torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2).float()
    mean, std = (torch.tensor(values)[:, None, None] for values in (encoder.mean, encoder.std))
    with torch.inference_mode():
        summary, features = encoder.encode((images - mean) / std)
    assert features.shape == (2, 27, -(-width // 14), 192)
    assert features.isfinite().all()
    assert summary.isfinite().all()
    assert not torch.allclose(features[0], features[1])
    # Positions of a photograph differ, so do their features.
    assert (features.flatten(1, 2).std(1) > 0.05).float().mean() > 0.9
