"""Parameter counts against closed formulas, on the meta device."""

import pytest
import torch

from cgspn.registry import BACKBONES

# name: (width C, depth, MLP, patch, grid, latent width C_c)
SIZES = {
    "demo_patch8": (128, 4, 256, 8, 8, 32),
    "tiny_patch16": (192, 12, 768, 16, 14, 48),
    "base_patch16": (768, 12, 3072, 16, 14, 64),
    "large_patch14": (1024, 24, 4096, 14, 16, 64),
    "so400m_patch14": (1152, 27, 4304, 14, 27, 64),
}
every_size = pytest.mark.parametrize("size", SIZES)


def count(name, **arguments):
    with torch.device("meta"):
        return sum(p.numel() for p in BACKBONES.build({"type": name, **arguments}).parameters())


def mlp(C, M):
    return C * M + M + M * C + C


def attention(C):
    return 4 * C * (C + 1)


def cgspn(C, latent):
    return (C + 1) * latent + (latent + 1) * 20 * latent + (latent + 1) * C


def map_head(C, M):
    """Query, attention, norm and MLP."""
    return C + attention(C) + 2 * C + mlp(C, M)


def encoder(size, operators, positions):
    """Parameters of an encoder whose operators together have ``operators``."""
    C, depth, M, patch, grid, _ = SIZES[size]
    blocks = operators + depth * (4 * C + mlp(C, M))
    return (3 * patch**2 + 1) * C + positions * grid**2 * C + blocks + 2 * C + map_head(C, M)


@every_size
def test_vit(size):
    C, depth, *_ = SIZES[size]
    assert count(f"vit_{size}") == encoder(size, depth * attention(C), positions=True)


@every_size
def test_cgspn(size):
    C, depth, _, _, _, latent = SIZES[size]
    assert count(f"cgspn_{size}") == encoder(size, depth * cgspn(C, latent), positions=False)


@every_size
def test_cgspn_with_two_projections(size):
    C, depth, _, _, _, latent = SIZES[size]
    operators = depth * (cgspn(C, latent) + 2 * C * (C + 1))
    node = {"type": "cgspn", "projections": True}
    assert count(f"cgspn_{size}", operator=node) == encoder(size, operators, positions=False)


@every_size
def test_hybrid(size):
    C, depth, _, _, _, latent = SIZES[size]
    chosen = [depth // 3 - 1, depth - 1]
    operators = 2 * attention(C) + (depth - 2) * cgspn(C, latent)
    assert count(f"cgspn_{size}", attention_at=chosen) == encoder(size, operators, positions=False)


@every_size
def test_gspn2(size):
    C, depth, *_ = SIZES[size]
    proxy = 8
    operator = (C + 1) * proxy + (C + 1) * (4 * 3 + 4 * 2 * proxy) + (proxy + 1) * C
    assert count(f"cgspn_{size}", operator={"type": "gspn2"}) == encoder(
        size, depth * operator, positions=False
    )


@every_size
def test_gspn(size):
    C, depth, _, _, _, reduced = SIZES[size]
    E = 2 * C
    shell = (C + 1) * E + (9 + 1) * E + 2 * E + (E + 1) * C
    operator = shell + (E + 1) * reduced + (reduced + 1) * 20 * E
    assert count(f"cgspn_{size}", operator={"type": "gspn"}) == encoder(
        size, depth * operator, positions=False
    )


@pytest.mark.parametrize(
    ("name", "arguments", "millions"),
    [
        ("vit_so400m_patch14", {}, 428.2),
        ("cgspn_so400m_patch14", {}, 290.2),
        ("cgspn_so400m_patch14", dict(attention_at=[8, 17, 26]), 305.4),
        ("cgspn_so400m_patch14", dict(operator={"type": "cgspn", "projections": True}), 361.9),
    ],
    ids=["vit", "lean", "hybrid", "two_projections"],
)
def test_so400m_in_millions(name, arguments, millions):
    assert count(name, **arguments) / 1e6 == pytest.approx(millions, abs=0.05)
