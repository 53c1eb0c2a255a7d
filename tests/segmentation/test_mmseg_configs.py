"""mmsegmentation's own networks with our encoders, from a config file as its users write it."""

import sys

import pytest
import torch

from cgspn.backbones.feature_maps import FeatureMaps

CONFIG = """
model = dict(
    type="EncoderDecoder",
    data_preprocessor=dict(
        type="SegDataPreProcessor", mean=[127.5] * 3, std=[127.5] * 3, bgr_to_rgb=True,
        size=(32, 32), pad_val=0, seg_pad_val=255),
    backbone=dict(
        type="cgspn.cgspn_demo_patch8", out_indices=(0, 1, 2, 3), embed_dim=16, num_heads=2, mlp_dim=32,
        operator=dict(type="cgspn", latent_dim=8)),
    neck=dict(type="Feature2Pyramid", embed_dim=16, norm_cfg=dict(type="BN")),
    decode_head=dict(
        type="UPerHead", in_channels=[16] * 4, in_index=[0, 1, 2, 3], channels=8, num_classes=5,
        norm_cfg=dict(type="BN"), loss_decode=dict(type="CrossEntropyLoss")),
    auxiliary_head=dict(
        type="FCNHead", in_channels=16, in_index=2, channels=8, num_classes=5,
        norm_cfg=dict(type="BN"), loss_decode=dict(type="CrossEntropyLoss", loss_weight=0.4)),
    train_cfg=dict(),
    test_cfg=dict(mode="whole"),
)
"""


@pytest.fixture
def network(tmp_path):
    from cgspn.segmentation._mmseg import MODELS, MMLogger  # isort: skip  mmcv-lite needs it first
    from mmengine import Config
    from mmengine.registry import DefaultScope

    MMLogger.get_current_instance().setLevel("WARNING")
    (tmp_path / "config.py").write_text(CONFIG)
    with DefaultScope.overwrite_default_scope("mmseg"):  # As mmengine's Runner sets it from a config.
        network = MODELS.build(Config.fromfile(tmp_path / "config.py").model)
    network.init_weights()
    return network


@pytest.fixture
def batch():
    from mmengine.structures import PixelData
    from mmseg.structures import SegDataSample

    samples = [SegDataSample(metainfo={"img_shape": (32, 32), "ori_shape": (40, 24)}) for _ in range(2)]
    for sample in samples:
        sample.gt_sem_seg = PixelData(data=torch.randint(0, 5, (1, 32, 32)))
    return {"inputs": [torch.randint(0, 256, (3, 32, 32), dtype=torch.uint8)] * 2, "data_samples": samples}


def test_the_loss_trains_the_encoder(network, batch):
    assert isinstance(network.backbone, FeatureMaps)
    network.train()
    losses = network(**network.data_preprocessor(batch, training=True), mode="loss")
    assert {"decode.loss_ce", "aux.loss_ce"} <= losses.keys()
    sum(value for name, value in losses.items() if "loss" in name).backward()
    for name, parameter in network.named_parameters():
        assert (parameter.grad is not None) == parameter.requires_grad, name
    assert network.backbone.encoder.patch_embed.weight.grad.abs().sum() > 0


def test_scores_and_predictions(network, batch):
    network.eval()
    data = network.data_preprocessor(batch)
    with torch.no_grad():
        assert network(data["inputs"], mode="tensor").shape == (2, 5, 16, 16)
        results = network(**data, mode="predict")
    assert [r.pred_sem_seg.data.shape for r in results] == [(1, 40, 24)] * 2


def test_nothing_stands_for_compiled_operators_afterwards(network):
    from cgspn.segmentation._mmseg import is_installed

    if not is_installed("mmcv-lite"):
        pytest.skip("needs mmcv-lite")
    assert "mmcv.ops" in sys.modules
    assert "mmcv._ext" not in sys.modules
