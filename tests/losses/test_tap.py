import pytest
import torch
import torch.nn.functional as F

from cgspn.losses import ChannelStatistics, TapAdapter, TapLoss, channel_kl, relative_error


def tokens(dim=6, offset=3.0):
    return torch.randn(2, 3, 5, dim) * torch.linspace(0.5, 4, dim) + offset


def softmax(x, temperature):
    e = (x.double() / temperature).exp()
    return e / e.sum(-1, keepdim=True)


@pytest.mark.parametrize("direction", ["student_teacher", "teacher_student"])
@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
def test_kl_equals_the_formula(direction, temperature):
    s, t = tokens(), tokens()
    p, q = softmax(s, temperature), softmax(t, temperature)
    if direction == "teacher_student":
        p, q = q, p
    expected = (p * (p / q).log()).sum() / (2 * 3 * 5)
    torch.testing.assert_close(channel_kl(s, t, temperature, direction).double(), expected, rtol=1e-5, atol=0)


def test_unknown_direction():
    with pytest.raises(ValueError, match=r"sideways.*student_teacher, teacher_student"):
        channel_kl(tokens(), tokens(), 1.0, "sideways")


@pytest.mark.parametrize("dim", [6, 4], ids=["same", "other"])
def test_adapter_starts_as_the_identity_path(dim):
    adapter, x = TapAdapter(dim, 6), tokens(dim)
    y = adapter(x)
    if dim == 6:
        assert torch.equal(y, x)
    else:
        torch.testing.assert_close(y, x @ adapter.skip.weight.T)
        torch.testing.assert_close(y.norm(dim=-1), x.norm(dim=-1))
    torch.nn.init.normal_(adapter.fc2.weight)
    hidden = F.gelu(F.layer_norm(x, (dim,)) @ adapter.fc1.weight.T + adapter.fc1.bias)
    torch.testing.assert_close(adapter(x), adapter.skip(x) + hidden @ adapter.fc2.weight.T)


def test_statistics_are_those_of_everything_seen():
    batches = [tokens(offset=100.0 + i)[: 1 + i % 2] for i in range(5)]
    statistics = ChannelStatistics(6)
    for batch in batches:
        statistics.update(batch)
    seen = torch.cat([batch.flatten(0, -2) for batch in batches]).double()
    torch.testing.assert_close(statistics.mean.double(), seen.mean(0), rtol=1e-6, atol=0)
    torch.testing.assert_close(statistics.variance.double(), seen.var(0, correction=0), rtol=1e-5, atol=0)
    standard = statistics(seen)
    torch.testing.assert_close(standard.mean(0), torch.zeros(6), rtol=0, atol=1e-4)
    torch.testing.assert_close(standard.std(0, correction=0), torch.ones(6), rtol=1e-4, atol=0)


@pytest.mark.parametrize("standardize", [True, False])
@pytest.mark.parametrize("kl_weight", [0.0, 0.3])
def test_tap_loss_equals_the_formula(standardize, kl_weight):
    s, t = tokens(), tokens(offset=-1.0)
    tap = TapLoss(6, 6, kl_weight=kl_weight, temperature=2.0, standardize=standardize)
    error, kl = tap(s, t)
    if standardize:
        flat = t.flatten(0, -2)
        variance = flat.var(0, correction=0)
        mean, std = flat.mean(0), (variance + 1e-6 * variance.mean()).sqrt()
        s, t = (s - mean) / std, (t - mean) / std
    torch.testing.assert_close(error, ((s - t) ** 2).mean(), rtol=1e-5, atol=0)
    torch.testing.assert_close(kl, kl_weight * channel_kl(s, t, 2.0), rtol=1e-4, atol=1e-7)


def test_a_small_branch_is_measured_by_its_stream():
    s, t, stream = tokens(), tokens(), 5 * tokens()
    s[..., :3] /= 100
    t[..., :3] /= 100
    error, _ = TapLoss(6, 6, kl_weight=0.0, branch=True)(s, t, stream)
    own, floor = (x.flatten(0, -2).std(0, correction=0) for x in (t, stream))
    floor = 0.1 * floor
    assert (own < floor)[:3].all()
    assert (own > floor)[3:].all()
    torch.testing.assert_close(error, (((s - t) / own.maximum(floor)) ** 2).mean(), rtol=1e-4, atol=0)


def test_a_branch_without_its_stream_raises():
    with pytest.raises(ValueError, match="in proportion to its stream"):
        TapLoss(6, 6, branch=True)(tokens(), tokens())
    TapLoss(6, 6, branch=True, standardize=False)(tokens(), tokens())


def test_evaluation_leaves_the_statistics_alone():
    tap = TapLoss(6, 6, branch=True)
    tap(tokens(), tokens(), tokens())
    before = {name: value.clone() for name, value in tap.state_dict().items()}
    tap.eval()(tokens(), tokens(offset=50.0), tokens(offset=50.0))
    assert all(torch.equal(before[name], value) for name, value in tap.state_dict().items())


def test_teacher_gets_no_gradient_and_the_student_does():
    s, t = tokens().requires_grad_(), tokens().requires_grad_()
    sum(TapLoss(6, 6)(s, t)).backward()
    assert t.grad is None
    assert s.grad.abs().sum() > 0


def test_tap_with_other_tokens_raises():
    with pytest.raises(ValueError, match="differ in tokens"):
        TapLoss(6, 6)(tokens(), tokens()[:, :2])


def test_float32_from_low_precision():
    tap = TapLoss(6, 6)
    error, kl = tap(tokens().bfloat16(), tokens().bfloat16())
    assert error.dtype == kl.dtype == torch.float32


def test_relative_error():
    t = tokens()
    flat = t.flatten(0, -2)
    s = torch.randn_like(t)
    expected = ((s - t) ** 2).mean() / flat.var(0, correction=0).mean()
    torch.testing.assert_close(relative_error(s, t), expected)
    assert relative_error(t, t) == 0
    torch.testing.assert_close(relative_error(flat.mean(0).expand_as(t), t), torch.tensor(1.0))
    with pytest.raises(ValueError, match="differ in shape"):
        relative_error(t, t[:1])
