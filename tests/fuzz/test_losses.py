"""Tensors that do not go together, for the losses; what is accepted equals the formula in float64."""

import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.fuzz.harness import REFUSED, attempt, examples

from cgspn.losses import TapLoss, caption_keys, channel_kl, info_nce, relative_error, sigmoid_contrastive

SIZES = st.integers(0, 4)
FLOATS = [torch.float32] * 4 + [torch.float64, torch.bfloat16, torch.float16]
OTHERS = [torch.int64, torch.bool, torch.complex64]
JUNK = st.sampled_from(
    [None, 3, "x", [1.0], torch.zeros(()), torch.eye(3).to_sparse(), torch.empty(2, 3, device="meta")]
)
NUMBERS = st.sampled_from([1.0, 0.5, 4, 0, -1.0, float("nan"), float("inf"), None, "x", True, [1.0]])
DIMS = st.sampled_from([3, 3, 3, 2, 1, 0, -1, 1.5, None, "3", True])


@st.composite
def features(draw, shape, dtypes=(*FLOATS, *OTHERS)):
    """Features of a shape, now and then of another one, with NaN in them, or no features at all."""
    wrong = draw(st.integers(0, 15))
    if wrong == 0:
        return draw(JUNK)
    if wrong == 1:
        shape = [*shape[:-1], draw(SIZES)]
    if wrong == 2:
        shape = [draw(SIZES), *shape[1:]]
    if wrong == 3:
        shape = draw(st.sampled_from([shape[1:], [1, *shape], [], [1] * len(shape)]))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 99)))
    tensor = 2 * torch.randn(list(shape), generator=generator)
    if wrong == 4 and tensor.numel():
        tensor.view(-1)[0] = float("nan")
    if wrong == 5:
        tensor = torch.zeros_like(tensor)
    return tensor.to(draw(st.sampled_from(dtypes)) if wrong == 6 else torch.float32)


def close(found, expected):
    assert found.dtype == torch.float32
    assert found.shape == ()
    torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-4, equal_nan=True)


@examples(150)
@given(data=st.data())
def test_contrastive(data):
    rows, channels = data.draw(SIZES), data.draw(SIZES)
    image, text = data.draw(features([rows, channels])), data.draw(features([rows, channels]))
    captions = data.draw(st.lists(st.sampled_from(["a cat", "a dog", "é", ""]), min_size=rows, max_size=rows))
    captions = data.draw(st.sampled_from([captions] * 9 + ["a cat", None, [3] * rows, captions[1:], 7]))
    keys = attempt(caption_keys, captions)
    if keys is REFUSED:
        return
    keys = data.draw(st.sampled_from([keys] * 6 + [keys.double(), keys[:, None], captions, keys.bool()]))
    scale, bias = (
        data.draw(st.one_of(st.sampled_from([torch.tensor(v) for v in (5.0, 1.0, -2.0)]), features([1])))
        for _ in range(2)
    )
    for loss, numbers in ((info_nce, [scale]), (sigmoid_contrastive, [scale, bias])):
        found = attempt(loss, image, text, keys, *numbers)
        if found is not REFUSED:
            close(found, contrastive(image.double(), text.double(), keys, *(n.double() for n in numbers)))


def contrastive(image, text, keys, scale, bias=None):
    """The two losses as sums over pairs."""
    image, text = (x / x.norm(dim=1, keepdim=True).clamp_min(1e-12) for x in (image, text))
    logits, number = scale * image @ text.T, len(keys)
    total = 0
    for i in range(number):
        matches = [j for j in range(number) if keys[i] == keys[j]]
        if bias is None:
            for line in (logits[i], logits[:, i]):
                shares = line.softmax(0).log()
                total = total - sum(shares[j] for j in matches) / len(matches) / 2
            continue
        for j in range(number):
            sign = 1 if j in matches else -1
            total = total + (1 + (-sign * (logits[i, j] + bias.squeeze())).exp()).log()
    return total / number


@examples(100)
@given(data=st.data())
def test_relative_error(data):
    shape = data.draw(st.lists(st.integers(0, 4), min_size=1, max_size=4))
    student, teacher = data.draw(features(shape)), data.draw(features(shape))
    eps = data.draw(st.one_of(st.just(1e-12), NUMBERS))
    found = attempt(relative_error, student, teacher, eps)
    if found is REFUSED:
        return
    s, t = (x.double().reshape(-1, x.shape[-1]) for x in (student, teacher))
    expected = (s - t).square().mean() / ((t - t.mean(0)).square().mean() + eps)
    if expected.abs() < 1e6:
        close(found, expected)


@examples(100)
@given(data=st.data())
def test_channel_kl(data):
    shape = data.draw(st.lists(st.integers(0, 4), min_size=1, max_size=4))
    student, teacher = data.draw(features(shape)), data.draw(features(shape))
    temperature = data.draw(st.one_of(st.just(1.0), NUMBERS))
    direction = data.draw(st.sampled_from(["student_teacher", "teacher_student", "sideways", None, ["x"]]))
    found = attempt(channel_kl, student, teacher, temperature, direction)
    if found is not REFUSED:
        close(found, kl(student, teacher, temperature, direction))


def kl(student, teacher, temperature, direction="student_teacher"):
    """The divergence of the softmaxes over channels, averaged over tokens."""
    p, q = ((x.double() / temperature).softmax(-1).reshape(-1, x.shape[-1]) for x in (student, teacher))
    p, q = (p, q) if direction == "student_teacher" else (q, p)
    return sum((p[i] * (p[i] / q[i]).log()).sum() for i in range(len(p))) / len(p)


@examples(150)
@given(data=st.data())
def test_tap(data):
    dim, teacher_dim = data.draw(DIMS), data.draw(DIMS)
    standardize, branch = data.draw(st.booleans()), data.draw(st.booleans())
    direction = data.draw(st.sampled_from(["student_teacher"] * 4 + ["sideways"]))
    weight, temperature = (data.draw(st.one_of(st.just(0.5), NUMBERS)) for _ in range(2))
    arguments = (dim, teacher_dim, weight, temperature, direction, standardize, branch)
    tap = attempt(TapLoss, *arguments)
    if tap is REFUSED:
        return
    axes = data.draw(st.lists(st.integers(1, 4), min_size=1, max_size=3))
    student = data.draw(features([*axes, dim]))
    teacher, stream = (data.draw(features([*axes, teacher_dim])) for _ in range(2))
    found = attempt(tap, student, teacher, stream if data.draw(st.integers(0, 9)) else None)
    if found is REFUSED:
        return
    s, t = student.double(), teacher.double()
    if standardize:
        every, added = (x.double().reshape(-1, teacher_dim) for x in (teacher, stream))
        variance = every.var(0, correction=0)
        if branch:
            variance = torch.maximum(variance, 0.01 * added.var(0, correction=0))
        mean, deviation = every.mean(0), (variance + 1e-6 * variance.mean()).sqrt()
        t = (t - mean) / deviation
        s = (s - mean) / deviation if dim == teacher_dim else s
    if dim != teacher_dim:
        s = s @ tap.adapter.skip.weight.double().T
    if s.abs().max() < 1e3 and t.abs().max() < 1e3:
        close(found[0], (s - t).square().mean())
        close(found[1], weight * kl(s, t, temperature))
