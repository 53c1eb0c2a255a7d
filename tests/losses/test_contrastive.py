import math
import os

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import torch.nn.functional as F

from cgspn.losses import caption_keys, info_nce, sigmoid_contrastive

CAPTIONS = ["a", "b", "a", "c", "d", "b", "e", "a"]
SCALE, BIAS = 7.0, -3.0


def embeddings(n=8, dim=5):
    return torch.randn(n, dim), torch.randn(n, dim)


def cosine(x, y):
    return sum(a * b for a, b in zip(x, y, strict=True)) / math.sqrt(
        sum(a * a for a in x) * sum(b * b for b in y)
    )


def plain_info_nce(image, text, captions):
    image, text, n = image.tolist(), text.tolist(), len(captions)
    total = 0.0
    for queries, gallery in ((image, text), (text, image)):
        for i in range(n):
            logits = [SCALE * cosine(queries[i], gallery[j]) for j in range(n)]
            normalizer = math.log(sum(math.exp(v) for v in logits))
            positives = [j for j in range(n) if captions[j] == captions[i]]
            total += sum(normalizer - logits[j] for j in positives) / len(positives)
    return total / (2 * n)


def plain_sigmoid(image, text, captions):
    image, text, n = image.tolist(), text.tolist(), len(captions)
    total = 0.0
    for i in range(n):
        for j in range(n):
            sign = 1 if captions[i] == captions[j] else -1
            total += math.log1p(math.exp(-sign * (SCALE * cosine(image[i], text[j]) + BIAS)))
    return total / n


def loss(kind, image, text, captions):
    keys, scale, bias = caption_keys(captions), torch.tensor(SCALE), torch.tensor(BIAS)
    if kind == "info_nce":
        return info_nce(image, text, keys, scale)
    return sigmoid_contrastive(image, text, keys, scale, bias)


@pytest.mark.parametrize(
    ("kind", "plain"), [("info_nce", plain_info_nce), ("sigmoid", plain_sigmoid)], ids=["info_nce", "sigmoid"]
)
@pytest.mark.parametrize("captions", [CAPTIONS, list("abcdefgh"), ["a"] * 8], ids=["some", "none", "all"])
def test_equals_the_formula(kind, plain, captions):
    image, text = embeddings()
    assert loss(kind, image, text, captions).item() == pytest.approx(plain(image, text, captions), rel=1e-5)


def test_info_nce_with_distinct_captions_is_clips_loss():
    image, text = embeddings()
    logits = SCALE * F.normalize(image, dim=-1) @ F.normalize(text, dim=-1).T
    target = torch.arange(len(image))
    expected = (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2
    torch.testing.assert_close(loss("info_nce", image, text, list("abcdefgh")), expected)


def test_float32_under_autocast():
    image, text = embeddings()
    with torch.autocast("cpu", torch.bfloat16):
        inside = loss("info_nce", image, text, CAPTIONS)
    assert torch.equal(inside, loss("info_nce", image, text, CAPTIONS))


def test_keys_are_equal_where_captions_are():
    keys = caption_keys(CAPTIONS)
    assert keys.dtype == torch.int64
    assert [[bool(a == b) for b in keys] for a in keys] == [[a == b for b in CAPTIONS] for a in CAPTIONS]


def test_different_numbers_of_rows_raise():
    with pytest.raises(ValueError, match="8, 7, 8"):
        info_nce(torch.randn(8, 4), torch.randn(7, 4), torch.arange(8), torch.tensor(1.0))


def sharded(rank, world_size, folder):
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=world_size)
    torch.set_num_threads(1)
    whole = torch.load(f"{folder}/inputs.pt")
    rows = slice(rank * 4, rank * 4 + 4)
    results = {}
    for kind in ("info_nce", "sigmoid"):
        model = torch.nn.Linear(5, 5, bias=False)
        model.load_state_dict(whole["model"])
        model = torch.nn.parallel.DistributedDataParallel(model)
        text = whole["text"][rows].clone().requires_grad_()
        value = loss(kind, model(whole["image"][rows]), text, CAPTIONS[rows])
        value.backward()
        results[kind] = {"loss": value.detach(), "weight": model.module.weight.grad, "text": text.grad}
    torch.save(results, f"{folder}/{rank}.pt")
    dist.destroy_process_group()
    os._exit(0)  # Gloo's threads abort one interpreter in ten while it shuts down.


def test_two_ranks_equal_one_process(tmp_path):
    image, text = embeddings()
    model = torch.nn.Linear(5, 5, bias=False)
    torch.save({"image": image, "text": text, "model": model.state_dict()}, tmp_path / "inputs.pt")
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    mp.spawn(sharded, (2, str(tmp_path)), nprocs=2)
    ranks = [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)]
    for kind in ("info_nce", "sigmoid"):
        whole = text.clone().requires_grad_()
        model.zero_grad()
        value = loss(kind, model(image), whole, CAPTIONS)
        value.backward()
        torch.testing.assert_close(sum(rank[kind]["loss"] for rank in ranks) / 2, value.detach())
        for rank in ranks:
            torch.testing.assert_close(rank[kind]["weight"], model.weight.grad)
        # DDP would average these over ranks too.
        torch.testing.assert_close(torch.cat([rank[kind]["text"] for rank in ranks]) / 2, whole.grad)
