import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import nn

from cgspn.data import ImageFolderDataModule, WebDatasetDataModule

BLACK = {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0), "image_size": 8, "batch_size": 3}


class Regression(LightningModule):
    """Learns a number from a picture, and notes what it was shown."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3 * 8 * 8, 1)
        self.seen = []

    def training_step(self, batch, index):
        self.seen.append((self.current_epoch, batch["image"].double().sum().item()))
        return self.layer(batch["image"].flatten(1)).square().mean() + self.layer.weight.sum()

    def validation_step(self, batch, index):
        self.log("loss", self.layer(batch["image"].flatten(1)).mean())

    def configure_optimizers(self):
        # Schedules ask for this, which makes Lightning build the loader before it restores its state.
        assert self.trainer.estimated_stepping_batches
        return torch.optim.Adam(self.parameters(), 1e-3)


def fit(folder, data, steps, ckpt_path=None, every=None):
    torch.manual_seed(0)
    model = Regression()
    callbacks = []
    if every:
        callbacks = [ModelCheckpoint(folder, filename="{step}", every_n_train_steps=every, save_top_k=-1)]
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    trainer = Trainer(
        default_root_dir=folder,
        max_steps=steps,
        max_epochs=100,
        callbacks=callbacks,
        enable_checkpointing=bool(every),
        accelerator="cpu",
        **quiet,
    )
    trainer.fit(model, datamodule=data, ckpt_path=ckpt_path)
    return model


KINDS = {
    "stream": {"train_samples": 24},
    "stream of unknown length": {},
    "cache": {"cache": True},
}


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("kind", [*KINDS, "folder"])
@pytest.mark.parametrize("stops", [(3,), (8, 13)], ids=["inside an epoch", "at its end and again"])
def test_resumed_run_equals_an_uninterrupted_one(kind, stops, shards, tmp_path, jpeg):
    def data():
        if kind != "folder":
            workers = 0 if kind == "cache" else 2
            return WebDatasetDataModule(
                shards, val=shards, num_workers=workers, crop=0.5, **KINDS[kind], **BLACK
            )
        for k in range(24):
            (tmp_path / f"{k}.jpg").write_bytes(jpeg(10 * k, (12, 12)))
        return ImageFolderDataModule(str(tmp_path), num_workers=0, flip=True, **BLACK)

    whole = fit(tmp_path, data(), 19)
    assert len(whole.seen) == 19
    assert len({total for _, total in whole.seen}) > 10
    checkpoint, start = None, 0
    for stop in (*stops, 19):
        part = fit(tmp_path / str(stop), data(), stop, checkpoint, every=stop)
        assert part.seen == whole.seen[start:stop]
        checkpoint, start = tmp_path / str(stop) / f"step={stop}.ckpt", stop
    assert torch.equal(part.layer.weight, whole.layer.weight)
