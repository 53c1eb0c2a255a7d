"""Two processes with half a batch each train what one process with the whole batch does."""

import pytest
import torch
import torch.distributed as dist
from lightning.pytorch.callbacks import ModelCheckpoint
from torch.utils.data import DataLoader, Sampler

from cgspn.modules import Stage2Contrastive
from cgspn.registry import TEACHERS


class EveryNth(Sampler):
    """This process's share of the samples; Lightning's own sampler would shuffle them."""

    def __init__(self, size):
        self.size = size

    @property
    def share(self):
        running = dist.is_initialized()
        first, step = (dist.get_rank(), dist.get_world_size()) if running else (0, 1)
        return range(first, self.size, step)

    def __iter__(self):
        return iter(self.share)

    def __len__(self):
        return len(self.share)


class PlainSteps(Stage2Contrastive):
    """Steps by the gradient itself: AdamW turns rounding noise into whole steps where a gradient is zero."""

    def configure_optimizers(self):
        return torch.optim.SGD([p for p in self.parameters() if p.requires_grad], lr=1e-3)


@pytest.mark.slow
def test_two_processes_equal_one(tiny, teacher_node, tmp_path):
    states, metrics = [], []
    for devices in (1, 2):
        torch.manual_seed(0)
        module = PlainSteps(tiny.node("cgspn"), teacher_node, train_text=True)
        # Before the processes start, so that the adapters' random starts are the same in all of them.
        module.set_teacher(TEACHERS.build(teacher_node))
        train, val = (
            DataLoader(samples, batch_size=6 // devices, sampler=EveryNth(len(samples)))
            # Of 19 samples one process gets a batch more than the other: it must not wait for the other.
            for samples in (tiny.data(24).samples, tiny.data(19).samples)
        )
        strategy = "ddp_spawn" if devices == 2 else "auto"
        saver = ModelCheckpoint(tmp_path / str(devices), save_last=True)
        trainer = tiny.trainer(
            tmp_path,
            devices=devices,
            strategy=strategy,
            callbacks=[saver],
            enable_checkpointing=True,
            use_distributed_sampler=False,
        )
        trainer.fit(module, train, val)
        # The trained weights of the spawned processes come back in the checkpoint alone.
        checkpoint = torch.load(tmp_path / str(devices) / "last.ckpt", weights_only=True)
        states.append(checkpoint["state_dict"])
        metrics.append(trainer.callback_metrics)
    one, two = states
    assert one.keys() == two.keys()
    for name in one:
        torch.testing.assert_close(
            one[name], two[name], rtol=1e-4, atol=1e-5, msg=lambda m, n=name: f"{n}: {m}"
        )
    # What trained has moved by far more than the tolerance.
    assert one["encoder.blocks.0.operator.up.bias"].abs().max() > 1e-3
    for name in ("val/retrieval/num_images", "val/retrieval/image_to_text_R@1", "val/pb_mse"):
        assert metrics[0][name].item() == pytest.approx(metrics[1][name].item(), rel=1e-4), name
