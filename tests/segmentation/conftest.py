import numpy as np
import pytest
from PIL import Image

COLOURS = {3: (200, 40, 40), 5: (40, 200, 40), 17: (40, 40, 200), 150: (200, 200, 40)}


@pytest.fixture(scope="session", autouse=True)
def mmseg():
    return pytest.importorskip("mmseg")


@pytest.fixture(scope="session")
def write_pair():
    """Writes one picture (H, W, 3) and its label map (H, W) of ADE20K's ids in ADE20K's layout."""

    def write(root, split, name, image, labels):
        for kind, content in (("images", image), ("annotations", labels)):
            (root / kind / split).mkdir(parents=True, exist_ok=True)
            Image.fromarray(content).save(root / kind / split / f"{name}.png")

    return write


@pytest.fixture(scope="session")
def small_folder(tmp_path_factory, write_pair):
    """12 training and 4 validation pictures of 24 x 32, a colour for each class; row 0 is ignored."""
    root = tmp_path_factory.mktemp("ade")
    generator = np.random.default_rng(0)
    table = np.zeros((256, 3))
    table[list(COLOURS)] = list(COLOURS.values())
    for split, count in (("training", 12), ("validation", 4)):
        for i in range(count):
            labels = np.kron(generator.choice(list(COLOURS), size=(3, 4)), np.ones((8, 8))).astype(np.uint8)
            image = np.clip(table[labels] + generator.normal(0, 10, (24, 32, 3)), 0, 255).astype(np.uint8)
            labels[0] = 0
            write_pair(root, split, f"picture_{i}", image, labels)
    return root
