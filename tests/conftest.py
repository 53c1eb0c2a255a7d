import os
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]


def import_torchvision():
    """Lets torchvision be imported beside a torch that its compiled part does not fit, if it is there.

    timm and OpenCLIP import it, and torchmetrics does where it is installed; none needs its operators here.
    """
    try:
        import torchvision
    except ModuleNotFoundError:
        return
    except RuntimeError:
        library = torch.library.Library("torchvision", "DEF")
        for name in ("nms", "qnms"):
            library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        import_torchvision.library = library  # The schemas live as long as it does.
        import torchvision  # noqa: F401


import_torchvision()


def pytest_configure(config):
    # One thread a worker: more only makes the workers wait for each other. Processes that tests start must
    # not have more, so that their sums have the same order.
    if "PYTEST_XDIST_WORKER" in os.environ:
        torch.set_num_threads(1)
        os.environ["OMP_NUM_THREADS"] = "1"


def pytest_collection_modifyitems(items):
    if torch.cuda.is_available():
        return
    skip = pytest.mark.skip(reason="needs a CUDA device")
    for item in items:
        if "cuda" in item.keywords:
            item.add_marker(skip)


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Folder with real data sets, not part of the repository; tests that need it are skipped without it."""
    folder = Path(os.environ.get("CGSPN_TEST_DATA", ROOT.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"no real data at {folder}; set CGSPN_TEST_DATA")
    return folder
