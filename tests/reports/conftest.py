import csv
import json

import numpy as np
import pytest
import yaml

from cgspn.segmentation.results import Example, write_examples, write_results

CLASSES = ["wall", "sky", "tree"]
PALETTE = [(120, 120, 120), (6, 230, 230), (4, 200, 3)]
TINY = {"type": "vision_encoder", "img_size": 16, "patch_size": 8, "embed_dim": 8, "depth": 1, "num_heads": 1}


def write_run(folder, module, arguments, columns=(), metrics=None):
    (folder / "checkpoints").mkdir(parents=True)
    model = {"class_path": f"cgspn.modules.{module}", "init_args": arguments}
    run = {"name": folder.parent.name}
    (folder / "config.yaml").write_text(yaml.safe_dump({"model": model, "run": run}))
    if metrics:
        (folder / "metrics.json").write_text(json.dumps(metrics))
    if columns:
        with (folder / "metrics.csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, sorted({name for row in columns for name in row}))
            writer.writeheader()
            writer.writerows(columns)


def write_segmentation(folder, encoder, ious, num_parameters=1234):
    figures = {"mIoU": float(np.mean(ious)), "aAcc": 71.25, "mAcc": 66.6, "num_classes_present": len(ious)}
    classes = [
        {"name": name, "IoU": iou, "Acc": 50.0, "pixels": 100 - 10 * i}
        for i, (name, iou) in enumerate(zip(CLASSES, ious, strict=False))
    ]
    origin = {"encoder": encoder, "num_parameters": num_parameters}
    write_results(folder, {"stage": "val", **figures, "classes": classes, **origin})
    truth = np.repeat([[0], [1], [2], [255]], 6, axis=1).astype(np.uint8)
    image = np.full((4, 6, 3), 99, np.uint8)
    write_examples(folder, [Example(f"{i}.png", image, truth, truth % 3) for i in range(2)], CLASSES, PALETTE)


@pytest.fixture
def runs(tmp_path):
    """Hand-made run folders of a teacher, two stages, and probes on both ends and on raw patches."""
    root = tmp_path / "runs"
    retrieval = {"val/retrieval/image_to_text_R@1": 41.5, "val/retrieval/text_to_image_R@1": 38.25}
    losses = [{"step": 10 * i, "epoch": 0, "train/loss": 4 / (i + 1)} for i in range(40)]
    write_run(
        root / "teacher/0",
        "ContrastivePretraining",
        {"encoder": TINY},
        [*losses, {"step": 390, "epoch": 0, "val/loss": 0.5}],
        retrieval,
    )
    teacher = {"type": "cgspn", "weights": str(root / "teacher/0/checkpoints/last.ckpt")}
    errors = [
        {"step": s, "epoch": 0, **{f"val/relative_error/block_{i}": 1 / (s + i) for i in range(3)}}
        for s in (1, 2)
    ]
    write_run(root / "stage1/0", "Stage1Distillation", {"teacher": teacher, "student": TINY}, errors)
    for name, encoder, ious in (
        ("teacher", TINY, [60.0, 40.0, 20.0]),
        ("stage1", TINY, [50.0, 30.0, 10.0]),
        ("raw", {"type": "raw_patches", "patch_size": 8}, [5.0, 4.0, 3.0]),
    ):
        path = root / name / "0/checkpoints/last.ckpt"
        init_from = None if name == "raw" else {"path": str(path), "part": "encoder"}
        arguments = {"encoder": encoder, "init_from": init_from}
        write_run(root / f"probe_{name}/0", "SegmentationModule", arguments, losses[:5])
        write_segmentation(root / f"probe_{name}/0", encoder, ious)
    return root
