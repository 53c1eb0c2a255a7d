"""Every operator against a formula written with plain loops, in float64."""

import math

import pytest
import torch

from cgspn.registry import OPERATORS

ALL = ("tb", "bt", "lr", "rl")
SUBSETS = [ALL, ("rl", "tb"), ("bt",)]


def sigmoid(value):
    return 1 / (1 + math.exp(-value))


def walk(direction, H, W, chunk):
    """Positions of a scan in order, each with its three neighbours on the line before (None: outside)."""
    vertical = direction in ("tb", "bt")
    S, L = (H, W) if vertical else (W, H)
    for i in range(S):
        line, before = (i, i - 1) if direction in ("tb", "lr") else (S - 1 - i, S - i)
        first = i == 0 or (chunk is not None and i % chunk == 0)
        for j in range(L):
            place = (lambda line, at: (line, at)) if vertical else (lambda line, at: (at, line))
            neighbours = [place(before, j + k) if 0 <= j + k < L else None for k in (-1, 0, 1)]
            yield place(line, j), neighbours, first


def propagate(x, parameters, *, directions=ALL, shared=False, chunk=None):
    """Sum over directions of ``u h`` for one picture ``x`` (H, W, C), parameters (H, W, rows)."""
    H, W, C = x.shape
    D, Ca = len(directions), 1 if shared else C
    y = torch.zeros(H, W, C, dtype=torch.float64)
    for d, direction in enumerate(directions):
        for c in range(C):
            h = {}
            for here, neighbours, first in walk(direction, H, W, chunk):
                row = parameters[here]
                logits = [float(row[(d * 3 + k) * Ca + (0 if shared else c)]) for k in range(3)]
                lam = float(row[D * 3 * Ca + d * C + c])
                u = float(row[D * 3 * Ca + D * C + d * C + c])
                value = lam * float(x[(*here, c)])
                if not first:
                    inside = [k for k in range(3) if neighbours[k] is not None]
                    total = sum(sigmoid(logits[k]) for k in inside)
                    value += sum(sigmoid(logits[k]) / total * h[neighbours[k]] for k in inside)
                h[here] = value
                y[(*here, c)] += u * value
    return y


def affine(layer, x):
    return x @ layer.weight.T + layer.bias


def build(dim=8, **node):
    """An operator in float64 whose every parameter is random, so that no part of it is hidden by a zero."""
    operator = OPERATORS.build(node, dim=dim, num_heads=2).double()
    for parameter in operator.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return operator


def pictures(dim=8):
    return torch.randn(2, 4, 3, dim, dtype=torch.float64)


def check(operator, x, formula):
    with torch.no_grad():
        expected = torch.stack([formula(picture) for picture in x])
        torch.testing.assert_close(operator(x), expected, rtol=1e-10, atol=1e-10)


def test_attention():
    attention, x = build(type="attention"), pictures()

    def formula(picture):
        tokens = picture.reshape(-1, 8)
        q, k, v = affine(attention.qkv, tokens).split(8, dim=-1)
        out = torch.zeros_like(q)
        for head in (slice(0, 4), slice(4, 8)):
            for n in range(len(q)):
                scores = [math.exp(float(q[n, head] @ k[m, head]) / 2) for m in range(len(k))]
                out[n, head] = sum(s * v[m, head] for m, s in enumerate(scores)) / sum(scores)
        return affine(attention.proj, out).view_as(picture)

    check(attention, x, formula)


@pytest.mark.parametrize("directions", SUBSETS, ids="-".join)
@pytest.mark.parametrize("shared", [False, True], ids=["per_channel", "shared"])
def test_cgspn(directions, shared):
    operator = build(type="cgspn", latent_dim=3, directions=directions, shared_affinity=shared)

    def formula(picture):
        latent = affine(operator.down, picture)
        parameters = affine(operator.propagation.generate, latent)
        return affine(operator.up, propagate(latent, parameters, directions=directions, shared=shared))

    check(operator, pictures(), formula)


@pytest.mark.parametrize("chunk", [1, 2, 3, 4, 9])
def test_cgspn_in_chunks(chunk):
    operator = build(type="cgspn", latent_dim=2, chunk=chunk)

    def formula(picture):
        latent = affine(operator.down, picture)
        return affine(
            operator.up, propagate(latent, affine(operator.propagation.generate, latent), chunk=chunk)
        )

    check(operator, pictures(), formula)


def test_cgspn_with_sigmoid_gates():
    operator = build(type="cgspn", latent_dim=3, gates="sigmoid")

    def formula(picture):
        latent = affine(operator.down, picture)
        parameters = affine(operator.propagation.generate, latent)
        parameters[..., 36:] = 1 / (1 + torch.exp(-parameters[..., 36:]))
        return affine(operator.up, propagate(latent, parameters))

    check(operator, pictures(), formula)


@pytest.mark.parametrize("chunk", [None, 2])
def test_cgspn_normalised_by_extent(chunk):
    operator = build(type="cgspn", latent_dim=3, state_norm="extent", directions=("lr", "bt"), chunk=chunk)

    def formula(picture):
        latent = affine(operator.down, picture)
        parameters = affine(operator.propagation.generate, latent)
        parameters[..., 18:21] /= 3 if chunk is None else 2
        parameters[..., 21:24] /= 4 if chunk is None else 2
        return affine(operator.up, propagate(latent, parameters, directions=("lr", "bt"), chunk=chunk))

    check(operator, pictures(), formula)


def test_cgspn_normalised_by_rms():
    operator = build(type="cgspn", latent_dim=3, state_norm="rms")

    def formula(picture):
        latent = affine(operator.down, picture)
        y = propagate(latent, affine(operator.propagation.generate, latent))
        return affine(operator.up, y / (y.square().mean(-1, keepdim=True) + 1e-6).sqrt())

    check(operator, pictures(), formula)


def test_cgspn_with_two_projections():
    operator = build(type="cgspn", latent_dim=3, projections=True)

    def formula(picture):
        latent = affine(operator.down, affine(operator.in_proj, picture))
        y = propagate(latent, affine(operator.propagation.generate, latent))
        return affine(operator.out_proj, affine(operator.up, y))

    check(operator, pictures(), formula)


@pytest.mark.parametrize("directions", SUBSETS, ids="-".join)
@pytest.mark.parametrize("chunk", [None, 3])
def test_gspn2(directions, chunk):
    operator = build(type="gspn2", proxy_dim=2, directions=directions, chunk=chunk)

    def formula(picture):
        parameters = affine(operator.propagation.generate, picture)
        proxies = affine(operator.down, picture)
        y = propagate(proxies, parameters, directions=directions, shared=True, chunk=chunk)
        return affine(operator.up, y)

    check(operator, pictures(), formula)


def convolve(layer, z):
    """SiLU of the 3 x 3 depth-wise convolution of (H, W, C) with zero padding, by loops."""
    H, W, _ = z.shape
    out = layer.bias.expand_as(z).clone()
    for y in range(H):
        for x in range(W):
            for dy in (-1, 0, 1):
                for dx in (-1, 0, 1):
                    if 0 <= y + dy < H and 0 <= x + dx < W:
                        out[y, x] += layer.weight[:, 0, dy + 1, dx + 1] * z[y + dy, x + dx]
    return out / (1 + torch.exp(-out))


def respond(layer, y):
    norms = torch.stack([y[..., c].square().sum().sqrt() for c in range(y.shape[-1])])
    return layer.gamma * y * norms / (norms.mean() + 1e-6) + layer.beta + y


SHELLS = {
    "whole": {},
    "bare": dict(inner_residual=False, projections=False, expansion=1, depthwise_conv=False, grn=False),
    "no_residual": dict(inner_residual=False),
    "no_projections": dict(projections=False, expansion=1),
    "no_expansion": dict(expansion=1),
    "no_convolution": dict(depthwise_conv=False),
    "no_grn": dict(grn=False),
    "two_directions_in_chunks": dict(directions=("rl", "tb"), chunk=2),
}


@pytest.mark.parametrize("shell", SHELLS.values(), ids=SHELLS.keys())
def test_gspn(shell):
    operator = build(dim=3, type="gspn", parameter_dim=2, **shell)

    def formula(picture):
        z = picture
        if shell.get("projections", True):
            z = affine(operator.in_proj, z)
        assert z.shape[-1] == 3 * shell.get("expansion", 2)
        if shell.get("depthwise_conv", True):
            z = convolve(operator.conv.conv, z)
        parameters = affine(operator.propagation.generate, affine(operator.reduce, z))
        directions = shell.get("directions", ALL)
        y = propagate(z, parameters, directions=directions, chunk=shell.get("chunk"))
        if shell.get("inner_residual", True):
            y = y + z
        if shell.get("grn", True):
            y = respond(operator.grn, y)
        return affine(operator.out_proj, y) if shell.get("projections", True) else y

    check(operator, pictures(3), formula)


@pytest.mark.parametrize("part", ["inner_residual", "depthwise_conv", "grn", "projections"])
def test_every_part_of_the_gspn_shell_changes_the_result(part):
    arguments = dict(type="gspn", parameter_dim=2, expansion=1)
    whole, without = build(**arguments), build(**arguments, **{part: False})
    without.load_state_dict({name: whole.state_dict()[name] for name in without.state_dict()})
    x = pictures()
    assert not torch.allclose(whole(x), without(x))
