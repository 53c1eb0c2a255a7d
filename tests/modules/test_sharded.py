"""FSDP, sharded layer by layer, trains what DDP trains.

Lightning's FSDP strategy takes GPUs only; torch's ``fully_shard`` shards on the CPU by the same hooks.
"""

import itertools
import os

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

from cgspn.blocks.layers import Mlp
from cgspn.modules import Stage1Distillation, Stage2Contrastive
from cgspn.modules.optimization import decayed_names, parameter_groups
from cgspn.operators import CGSPN
from cgspn.registry import TEACHERS


def train(rank, folder, student, teacher, batch):
    """Three steps of each stage by DDP and by FSDP; rank 0 saves the losses."""
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    torch.set_num_threads(1)
    own = {name: values[rank::2] for name, values in batch.items()}
    losses = {}
    for module_class, sharded in itertools.product((Stage1Distillation, Stage2Contrastive), (False, True)):
        torch.manual_seed(0)
        module = module_class(student, teacher)
        module.set_teacher(TEACHERS.build(teacher))
        module.initialise()
        decayed = decayed_names(module)
        # Lightning too sends a training step through the wrapper's forward.
        module.forward = lambda batch, module=module: loss_of(module, batch)
        wrapped = module
        if sharded:
            mesh = init_device_mesh("cpu", (2,))
            for layer in [m for m in module.modules() if isinstance(m, Mlp | CGSPN)]:
                fully_shard(layer, mesh=mesh)
            fully_shard(module, mesh=mesh)
        else:
            wrapped = DistributedDataParallel(module)
        optimizer = torch.optim.AdamW(parameter_groups(module, decayed, 0.05), lr=1e-3)
        found = losses[module_class.__name__, sharded] = []
        for _ in range(3):
            optimizer.zero_grad()
            loss = wrapped(own)
            loss.backward()
            optimizer.step()
            found.append(loss.item())
    if rank == 0:
        torch.save(losses, f"{folder}/losses.pt")
    dist.destroy_process_group()
    os._exit(0)  # Gloo's threads abort one interpreter in ten while it shuts down.


def loss_of(module, batch):
    if isinstance(module, Stage1Distillation):
        return torch.stack(
            module.block_errors(batch["image"], module.frozen_teacher.trace(batch["image"]))
        ).sum()
    return module.losses(batch, *module.traces(batch["image"]), module.embed_captions(batch))["loss"]


@pytest.mark.slow
def test_sharded_training_equals_ddp(tiny, teacher_node, tmp_path):
    mp.spawn(train, (str(tmp_path), tiny.node("cgspn"), teacher_node, tiny.batch()), nprocs=2)
    losses = torch.load(tmp_path / "losses.pt")
    assert len(losses) == 4
    for (name, sharded), found in losses.items():
        assert found == pytest.approx(losses[name, not sharded], rel=1e-5)
        assert found[-1] < found[0]
