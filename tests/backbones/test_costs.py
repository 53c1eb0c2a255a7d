"""Costs against formulas written out by hand, torch's own counter and memory that a real run keeps."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

import cgspn
from cgspn.backbones.costs import REST, encoder_costs
from cgspn.ops import library


def on_meta(name, **overrides):
    with torch.device("meta"):
        return cgspn.create_model(name, **overrides)


def kept_by_a_real_run(encoder, images):
    """Bytes that the forward pass leaves allocated, its output apart, by torch's allocator."""
    encoder(images)  # What is allocated once does not count.
    with torch.profiler.profile(profile_memory=True) as profile:
        output = encoder(images)
    events = profile.profiler.kineto_results.events()
    left = sum(event.nbytes() for event in events if event.name() == "[memory]")
    return left - output.untyped_storage().nbytes()


def vit_macs(N, C, mlp, depth, patch):
    block = 4 * N * C * C + 2 * N * N * C + 2 * N * C * mlp
    head = C * C + 2 * N * C * C + 2 * N * C + C * C + 2 * C * mlp
    return N * 3 * patch**2 * C + depth * block + head


@pytest.mark.parametrize(
    ("name", "size", "expected"),
    [
        ("vit_demo_patch8", (64, 64), vit_macs(64, 128, 256, 4, 8)),
        ("vit_tiny_patch16", (224, 224), vit_macs(196, 192, 768, 12, 16)),
        ("vit_base_patch16", (384, 512), vit_macs(24 * 32, 768, 3072, 12, 16)),
        ("vit_so400m_patch14", (378, 378), vit_macs(729, 1152, 4304, 27, 14)),
    ],
)
def test_macs_of_a_vit(name, size, expected):
    assert encoder_costs(on_meta(name), size).total.macs == pytest.approx(expected, rel=0.01)


@pytest.mark.parametrize("name", ["vit_demo_patch8", "vit_tiny_patch16", "cgspn_demo_patch8"])
def test_macs_against_torchs_counter(name):
    encoder = on_meta(name, img_size=(64, 96))
    costs = encoder_costs(encoder, (64, 96), batch_size=2)
    # On the meta device attention is two matrix products, which torch counts; on the CPU it is not counted.
    with FlopCounterMode(display=False) as counter:
        encoder(torch.empty(2, 3, 64, 96, device="meta"))
    reference_scans = 0 if library.STATUS["cpu"].active else costs.scan_macs
    assert costs.total.macs - reference_scans == pytest.approx(counter.get_total_flops() / 2, rel=0.01)


@pytest.mark.parametrize(
    ("operator", "channels", "affinities", "directions"),
    [
        ({"type": "cgspn", "latent_dim": 32}, 32, 32, 4),
        ({"type": "cgspn", "shared_affinity": True, "directions": ["tb", "lr"]}, 32, 1, 2),
        ({"type": "gspn", "expansion": 1}, 128, 128, 4),
        ({"type": "gspn2"}, 8, 1, 4),
    ],
    ids=lambda value: value["type"] if isinstance(value, dict) else None,
)
def test_macs_of_scans(operator, channels, affinities, directions):
    costs = encoder_costs(on_meta("cgspn_demo_patch8", operator=operator), (40, 72))
    pixels, blocks = 5 * 9, 4
    # 3 neighbours, 1 for each gate; the weights of a row: 3 products of two, 3 divisions.
    assert costs.scan_macs == blocks * pixels * directions * (5 * channels + 6 * affinities)
    assert costs.parts[f"operator {operator['type']}"].macs > costs.scan_macs


def test_macs_of_a_cgspn_operator():
    C, latent, N, depth = 128, 32, 64, 4
    generate = latent * 4 * (3 + 1 + 1) * latent
    scan = 4 * (5 + 6) * latent
    expected = depth * N * (2 * C * latent + generate + scan)
    assert encoder_costs(on_meta("cgspn_demo_patch8"), (64, 64)).parts["operator cgspn"].macs == expected


@pytest.mark.parametrize("name", ["vit_so400m_patch14", "cgspn_so400m_patch14", "raw_patches"])
def test_parameters_are_exact(name):
    encoder = on_meta(name)
    costs = encoder_costs(encoder, (56, 56))
    assert costs.total.parameters == sum(p.numel() for p in encoder.parameters())


def test_parts_of_a_hybrid():
    encoder = on_meta("cgspn_demo_patch8", attention_at=[1, 3], num_classes=5)
    costs = encoder_costs(encoder, (64, 64))
    assert list(costs.parts) == [
        "embedding",
        "operator cgspn",
        "MLPs",
        "operator attention",
        "head",
        REST,
    ]
    attention = 2 * sum(p.numel() for p in encoder.blocks[1].operator.parameters())
    assert costs.parts["operator attention"].parameters == attention
    assert costs.parts["head"].parameters > 5 * 129
    assert all(cost.activation_bytes > 0 for cost in costs.parts.values())


@pytest.mark.skipif(not library.STATUS["cpu"].active, reason="the reference keeps other tensors")
@pytest.mark.parametrize("batch_size", [1, 3])
@pytest.mark.parametrize("size", [(64, 64), (72, 200)], ids=str)
@pytest.mark.parametrize(
    ("name", "overrides"),
    [
        ("vit_demo_patch8", {}),
        ("vit_demo_patch8", {"swiglu": True, "layer_scale": 0.1, "activation": "quick_gelu"}),
        ("cgspn_demo_patch8", {}),
        ("cgspn_demo_patch8", {"attention_at": [0], "num_classes": 10}),
        ("cgspn_demo_patch8", {"operator": {"type": "gspn"}}),
        ("cgspn_demo_patch8", {"operator": {"type": "gspn2"}, "head": {"type": "avg"}}),
    ],
    ids=lambda value: value if isinstance(value, str) else "-".join(value),
)
def test_activation_memory_is_what_a_run_keeps(name, overrides, size, batch_size):
    costs = encoder_costs(on_meta(name, **overrides), size, batch_size)
    encoder = cgspn.create_model(name, **overrides)
    measured = kept_by_a_real_run(encoder, torch.randn(batch_size, 3, *size))
    assert costs.total.activation_bytes == pytest.approx(measured, rel=0.2)


def test_activation_memory_without_gradients_is_counted_too():
    with torch.no_grad():
        assert encoder_costs(on_meta("vit_demo_patch8"), (64, 64)).total.activation_bytes > 0
