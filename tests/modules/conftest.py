from types import SimpleNamespace

import pytest
import torch
from lightning.pytorch import LightningDataModule, Trainer
from torch.utils.data import DataLoader, Dataset

from cgspn.modules import ContrastivePretraining

# Test files cannot import from here: they get these helpers through the fixture ``tiny``.
ENCODER = dict(
    type="vision_encoder", img_size=16, patch_size=4, embed_dim=16, depth=3, num_heads=2, mlp_dim=24
)
TEXT = dict(width=16, depth=1, num_heads=2, num_buckets=64, context_length=8)
CLASSES = ("cat", "dog", "boat")


def encoder_node(operator="attention", **changes):
    return ENCODER | {"operator": {"type": operator}} | changes


def make_batch(n=6, size=16, seed=0):
    generator = torch.Generator().manual_seed(seed)
    label = torch.arange(n) % len(CLASSES)
    return {
        "image": torch.randn(n, 3, size, size, generator=generator),
        "text": [f"a photo of a {CLASSES[i]}." for i in label],
        "label": label,
    }


class Samples(Dataset):
    def __init__(self, n, size):
        self.batch = make_batch(n, size)

    def __len__(self):
        return len(self.batch["image"])

    def __getitem__(self, index):
        return {name: values[index] for name, values in self.batch.items()}


class PairData(LightningDataModule):
    class_names = CLASSES

    def __init__(self, n=24, size=16):
        super().__init__()
        self.samples = Samples(n, size)

    def train_dataloader(self):
        return DataLoader(self.samples, batch_size=6)

    val_dataloader = test_dataloader = train_dataloader


def make_trainer(folder, **arguments):
    return Trainer(
        **dict(
            default_root_dir=folder,
            accelerator="cpu",
            devices=1,
            max_steps=4,
            log_every_n_steps=1,
            enable_progress_bar=False,
            enable_model_summary=False,
            enable_checkpointing=False,
            logger=False,
        )
        | arguments
    )


@pytest.fixture(scope="session")
def tiny():
    return SimpleNamespace(
        node=encoder_node, batch=make_batch, data=PairData, trainer=make_trainer, text=TEXT
    )


@pytest.fixture(scope="session")
def teacher_path(tmp_path_factory):
    """A checkpoint that really comes out of a (short) pretraining run."""
    folder = tmp_path_factory.mktemp("teacher")
    torch.manual_seed(0)
    module = ContrastivePretraining(encoder_node(), text=TEXT, lr=3e-3)
    trainer = make_trainer(folder)
    trainer.fit(module, PairData())
    path = folder / "teacher.ckpt"
    trainer.save_checkpoint(path)
    return str(path)


@pytest.fixture
def teacher_node(teacher_path):
    return {"type": "cgspn", "weights": teacher_path}
