import pytest
import torch

from cgspn.modules import ActivationCheckpointing, Stage1Distillation, Stage2Contrastive


@pytest.mark.parametrize("module_class", [Stage1Distillation, Stage2Contrastive])
def test_training_is_the_same_and_keeps_less(module_class, tiny, teacher_node, tmp_path):
    weights, kept = [], []
    for callbacks in ([], [ActivationCheckpointing()]):
        torch.manual_seed(0)
        module, sizes = module_class(tiny.node("cgspn"), teacher_node, lr=1e-3), []

        def keep(tensor, sizes=sizes):
            sizes.append(tensor.numel())
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            tiny.trainer(tmp_path, max_steps=2, callbacks=callbacks).fit(module, tiny.data())
        weights.append(module.state_dict())
        kept.append(sum(sizes))
    for name, value in weights[0].items():
        torch.testing.assert_close(weights[1][name], value, msg=lambda m, n=name: f"{n}: {m}")
    assert kept[1] < kept[0]


def test_a_model_without_an_encoder_is_refused():
    with pytest.raises(ValueError, match="has no encoder that can checkpoint"):
        ActivationCheckpointing().setup(None, torch.nn.Linear(1, 1), "fit")
