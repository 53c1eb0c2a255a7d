"""A run that diverges ends in one line and keeps the checkpoint before."""

from pathlib import Path

import torch

CHECKPOINT = "runs/base/0/checkpoints/last.ckpt"


def test_divergence_names_the_step_and_keeps_the_last_checkpoint(cgspn):
    assert cgspn("fit", "-c", "base.yaml").code == 0
    content = torch.load(CHECKPOINT, weights_only=True)
    content["state_dict"]["encoder.norm.weight"].fill_(float("nan"))
    torch.save(content, "nan.ckpt")
    before = Path(CHECKPOINT).read_bytes()
    result = cgspn("fit", "-c", "base.yaml", "--ckpt_path=nan.ckpt", "--trainer.max_epochs=2")
    assert result.code == 2
    assert "cgspn: error: Training has diverged: the loss is nan at step 5; nothing was saved." in result.err
    assert not Path("runs/base/1/checkpoints").exists()
    assert Path("runs/base/latest").readlink() == Path("0")
    assert Path(CHECKPOINT).read_bytes() == before
