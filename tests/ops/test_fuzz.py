"""Random calls, fixed by their seeds, against the error rule; and proof that the rule sees wrong answers."""

import random

import pytest
import torch

from cgspn.ops import line_scan
from cgspn.ops.directions import DIRECTIONS

from .cases import LAYOUTS, LOGITS, MEANS, NAMES, Case, draw, exact, ours
from .rule import check_rule, comparator, hold_to_rule, output_gradient

DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
# In few steps: over a thousand, errors of narrow lines are one random walk, of which one draw says little.
LONG = [  # lines beyond a block of threads, beyond a cluster of blocks and beyond any shared memory
    Case((1, 3, 3, 1500), directions=("tb", "bt")),
    Case((1, 64, 2, 1100), directions=("tb", "bt"), layout="channels_last"),
    Case((1, 64, 2, 3100), directions=("bt",), layout="channels_last"),
    Case((1, 64, 1100, 2), directions=("lr", "rl"), layout="generated"),
    Case((1, 8, 2, 30000), directions=("bt", "tb"), layout="channels_last"),
    Case((1, 1, 70000, 2), directions=("lr", "rl"), layout="channels_last"),
    Case((1, 3, 2, 70000), directions=("tb",), affinity_channels=1),
    Case((1, 64, 3, 700), affinity_channels=1, layout="padded"),
    Case((1, 2, 2, 700), directions=("tb", "bt")),  # the same for planes
    Case((1, 1, 1024, 17), directions=("rl", "lr")),
    Case((1, 1, 1025, 5), directions=("lr", "rl")),
    Case((1, 1, 4096, 2), directions=("lr",)),
    Case((1, 1, 2, 4097), directions=("bt",)),
]


def random_case(seed):
    """A case and its dtype: every choice that a caller has, most sizes small and odd."""
    rng = random.Random(seed)
    channels = rng.choice([1, 1, 2, 3, 5, 8, 8, 13, 16, 24, 64, 64, 96, 1152])
    longest = {1152: 8, 96: 24, 64: 40}.get(channels, 80)
    height, width = (rng.choice([1, 2, 3, rng.randint(4, longest), rng.randint(4, longest)]) for _ in "HW")
    case = Case(
        shape=(rng.choice([1, 1, 2, 3]), channels, height, width),
        directions=tuple(rng.sample(DIRECTIONS, rng.choice([1, 2, 3, 4, 4, 4]))),
        affinity_channels=rng.choice([None, None, None, 1]),
        chunk=rng.choice([None, None, 1, rng.randint(2, 9), rng.randint(2, 90)]),
        normalize=rng.random() < 0.8,
        reduce=rng.choice(["sum", "sum", "none"]),
        gates=(rng.random() < 0.8, rng.random() < 0.8),
        layout=rng.choice(LAYOUTS),
        logits=rng.choice([*MEANS, *LOGITS, 0.0, 0.0]),
    )
    return case, DTYPES[seed % len(DTYPES)]


@pytest.mark.parametrize("seed", range(60))
def test_random_calls(seed, device, poisoned):
    case, dtype = random_case(seed)
    tensors = draw(case, dtype, device)
    first = check_rule(case, tensors, dtype, device)
    y, grads = ours(tensors, case, output_gradient(case, dtype, device))
    for got, want in zip((y, *grads), first, strict=True):
        assert got is want is None or torch.equal(got, want), "not bitwise the same twice"


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("case", LONG, ids=str)
def test_long_lines(case, dtype, device):
    check_rule(case, draw(case, dtype, device), dtype, device)


@pytest.mark.parametrize("logits", [*MEANS, *LOGITS])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("channels", [1, 16])
def test_extreme_logits(channels, dtype, logits, device):
    case = Case((2, channels, 12, 9), layout="channels_last", logits=logits)
    check_rule(case, draw(case, dtype, device), dtype, device)


def mutated(mutation, tensors, case, dy):
    """Output and gradients of an operator that is wrong in one way."""
    x, a, lam, u = leaves = [t.detach().requires_grad_() for t in tensors]
    options = dict(case.options)
    if mutation == "neighbours swapped":
        a = a.flip(2)
    elif mutation == "chunk off by one":
        options["chunk"] += 1
    else:  # the neighbour outside the line takes its share of the row
        s = a.clamp(min=-40).sigmoid()
        a, options["normalize"] = s / s.sum(2, keepdim=True), False
    y = line_scan(x, a, lam, u, **options)
    return [y.detach(), *torch.autograd.grad(y, leaves, dy)]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("mutation", ["neighbours swapped", "chunk off by one", "border mask missing"])
def test_the_rule_sees_mutations(mutation, dtype, device):
    case = Case((2, 16, 9, 7), chunk=4, layout="channels_last")
    tensors = draw(case, dtype, device)
    dy = output_gradient(case, dtype, device)
    y, grads = ours(tensors, case, dy)
    right, wrong = [y, *grads], mutated(mutation, tensors, case, dy)
    true_y, true_grads = exact(tensors, case, dy)
    truth, theirs = (true_y, *true_grads), comparator(tensors, case, dy)
    hold_to_rule(right, truth, theirs)
    for i, name in enumerate(("y", *NAMES)):
        with pytest.raises(AssertionError, match=f"^{name}\\b"):
            hold_to_rule([*right[:i], wrong[i], *right[i + 1 :]], truth, theirs)
