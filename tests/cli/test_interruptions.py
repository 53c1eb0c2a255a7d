"""Whatever ends a run, what goes on from its checkpoint is the run that nothing ended."""

import json
from pathlib import Path

import pytest
import torch

from cgspn.data.scenes.writer import write_shards

CONFIG = {
    "trainer": {
        "accelerator": "cpu",
        "max_epochs": 3,
        "num_sanity_val_steps": 0,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "log_every_n_steps": 1,
    },
    "model": {
        "class_path": "ContrastivePretraining",
        "init_args": {
            "encoder": {
                "type": "vision_encoder",
                "img_size": 16,
                "patch_size": 8,
                "embed_dim": 16,
                "depth": 3,
                "num_heads": 2,
                "operator": "cgspn",
                "drop_path_rate": 0.5,
            },
            "text": {"width": 16, "depth": 1, "num_heads": 2, "num_buckets": 64},
        },
    },
    "data": {
        "class_path": "WebDatasetDataModule",
        "init_args": {
            "train": "pairs/train-*.tar",
            "val": "pairs/val-*.tar",
            "image_size": 16,
            "batch_size": 3,
            "shuffle": 4,
            "crop": 0.5,
            "num_workers": 2,
        },
    },
}


@pytest.fixture
def pairs(config):
    """24 training samples in four shards, read by two workers, 8 batches an epoch; 6 for validation."""
    write_shards("pairs", 24, 6, size=16, shard_size=6, num_workers=1)
    return config("train.yaml", CONFIG)


def checkpoint(folder):
    return torch.load(Path(folder, "checkpoints/last.ckpt"), weights_only=True)


def assert_same(found, expected, path=""):
    """Compares nested containers, tensors bit by bit."""
    assert type(found) is type(expected), path
    if isinstance(expected, dict):
        assert found.keys() == expected.keys(), path
        for key in expected:
            assert_same(found[key], expected[key], f"{path}.{key}")
    elif isinstance(expected, list | tuple):
        assert len(found) == len(expected), path
        for index, pair in enumerate(zip(found, expected, strict=True)):
            assert_same(*pair, f"{path}.{index}")
    elif isinstance(expected, torch.Tensor):
        assert torch.equal(found, expected), path
    else:
        assert found == expected, path


def assert_same_run(resumed, whole):
    """Weights, optimizer, schedule, random numbers and the loader's position are the same."""
    resumed, whole = checkpoint(resumed), checkpoint(whole)
    for key in ("global_step", "epoch", "state_dict", "optimizer_states", "lr_schedulers", "callbacks"):
        assert_same(resumed[key], whole[key], key)
    loaders = [run["loops"]["fit_loop"]["state_dict"]["combined_loader"] for run in (resumed, whole)]
    assert_same(*loaders)


def strike(*values):
    flags = [f"--trainer.callbacks.{name}={value}" for name, value in zip(NAMES, values, strict=True)]
    return ["--trainer.callbacks+=tiny.Strike", *flags]


NAMES = ("name", "where", "number")
CASES = {
    # Killed between two periodic checkpoints, in the middle of the second epoch.
    "killed": (("SIGKILL", "train", 13), 10),
    "stopped in validation": (("SIGTERM", "validation", 1), 8),
}


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_resumed_run_equals_an_uninterrupted_one(case, pairs, cgspn, shell):
    signal, step = CASES[case]
    assert cgspn("fit", "-c", pairs, "--run.name=whole").code == 0
    result = shell("fit", "-c", pairs, "--run.name=ended", "--checkpoint.every_n_steps=5", *strike(*signal))
    assert result.code == (-9 if case == "killed" else 143), result.err
    saved = checkpoint("runs/ended/0")
    assert saved["global_step"] == step
    position = saved["loops"]["fit_loop"]["state_dict"]["combined_loader"][0]
    assert (position["epoch"], position["batches"]) == divmod(step, 8)
    path = "runs/ended/0/checkpoints/last.ckpt"
    result = cgspn("fit", "-c", pairs, "--run.name=ended", "--ckpt_path", path)
    assert result.code == 0, result.err
    assert_same_run("runs/ended/1", "runs/whole/0")
    metrics = [json.loads(Path(run, "metrics.json").read_text()) for run in ("runs/ended/1", "runs/whole/0")]
    assert metrics[0] == metrics[1]


@pytest.mark.slow
def test_signal_before_training_began(pairs, shell):
    result = shell("fit", "-c", pairs, "--trainer.num_sanity_val_steps=1", *strike("SIGTERM", "sanity", 0))
    assert result.code == 143, result.err
    assert result.err.splitlines()[-1] == "cgspn: stopped by SIGTERM before training began."
    assert "Traceback" not in result.err
    assert not Path("runs/train/latest").exists()
