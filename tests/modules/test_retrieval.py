import pytest
import torch
import torch.nn.functional as F

from cgspn.losses import caption_keys
from cgspn.modules.retrieval import RetrievalRecall

CAPTIONS = ["a", "b", "a", "c", "d", "b", "e", "f", "g", "h", "i", "j"]


def plain_recall(image, text, captions, k):
    """Percent of images whose caption, and of captions any of whose images, is among the first k."""
    distinct = list(dict.fromkeys(captions))
    texts = torch.stack([text[captions.index(caption)] for caption in distinct])
    similarity = F.normalize(image, dim=-1) @ F.normalize(texts, dim=-1).T
    images = [distinct[j] for j in similarity.argsort(dim=1, descending=True)[:, :k].flatten()]
    hits = [captions[i] in images[i * k : (i + 1) * k] for i in range(len(captions))]
    order = similarity.T.argsort(dim=1, descending=True)[:, :k]
    text_hits = [any(captions[j] == distinct[i] for j in order[i]) for i in range(len(distinct))]
    return 100 * sum(hits) / len(hits), 100 * sum(text_hits) / len(text_hits)


@pytest.mark.parametrize("k", [1, 5, 10])
def test_recall_equals_the_definition(k):
    image, by_caption = torch.randn(len(CAPTIONS), 4), torch.randn(10, 4)
    text = by_caption[[ord(caption) - ord("a") for caption in CAPTIONS]]
    metric = RetrievalRecall()
    for rows in (slice(0, 5), slice(5, 12)):
        metric.update(image[rows], text[rows], caption_keys(CAPTIONS[rows]))
    result = metric.compute()
    to_text, to_image = plain_recall(image, text, CAPTIONS, k)
    assert result[f"image_to_text_R@{k}"].item() == pytest.approx(to_text)
    assert result[f"text_to_image_R@{k}"].item() == pytest.approx(to_image)
    assert result["num_captions"] == 10
    assert result["num_images"] == 12


def test_perfect_and_collapsed_embeddings():
    eye, keys = torch.eye(12), caption_keys([str(i) for i in range(12)])
    metric = RetrievalRecall()
    metric.update(eye, eye, keys)
    assert metric.compute()["image_to_text_R@1"] == 100
    metric.reset()
    metric.update(torch.ones(12, 3), torch.ones(12, 3), keys)
    result = metric.compute()
    assert result["image_to_text_R@10"] == result["text_to_image_R@10"] == 0
