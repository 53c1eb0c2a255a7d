import numpy as np
import pytest
import torch

from cgspn.segmentation import ADE20KDataModule


@pytest.fixture
def new_metric():
    from cgspn.segmentation.metric import PresentClassIoU

    return lambda num_classes: PresentClassIoU([f"class_{i}" for i in range(num_classes)])


def formula(pairs, num_classes):
    """IoU and accuracy of each class in percent (NaN: undefined), pixel accuracy, presence in the truth."""
    labels, truth = (np.concatenate([np.ravel(pair[i]) for pair in pairs]) for i in range(2))
    labels, truth = labels[truth != 255], truth[truth != 255]
    confusion = np.zeros((num_classes, num_classes))
    np.add.at(confusion, (truth, labels), 1)
    hit, true, predicted = np.diag(confusion), confusion.sum(1), confusion.sum(0)
    with np.errstate(invalid="ignore"):
        return 100 * hit / (true + predicted - hit), 100 * hit / true, 100 * hit.sum() / true.sum(), true > 0


def random_pairs(num_classes, present, count=3):
    generator = np.random.default_rng(0)
    for _ in range(count):
        shape = tuple(generator.integers(5, 30, 2))
        truth = generator.integers(0, present, shape)
        labels = np.where(generator.random(shape) < 0.5, truth, generator.integers(0, num_classes, shape))
        yield labels, np.where(generator.random(shape) < 0.1, 255, truth)


@pytest.mark.parametrize(("num_classes", "present"), [(6, 6), (6, 4), (150, 3)])
def test_figures_equal_the_formula(new_metric, num_classes, present):
    pairs = list(random_pairs(num_classes, present))
    metric = new_metric(num_classes)
    for labels, truth in pairs:
        metric.add(torch.from_numpy(labels), torch.from_numpy(truth))
    figures = metric.evaluate(len(pairs))
    iou, acc, pixel_accuracy, there = formula(pairs, num_classes)
    assert figures["num_classes_present"] == there.sum() == present
    assert figures["mIoU"] == pytest.approx(iou[there].mean(), abs=1e-9)
    assert figures["mAcc"] == pytest.approx(acc[there].mean(), abs=1e-9)
    assert figures["aAcc"] == pytest.approx(pixel_accuracy, abs=1e-9)
    assert [row["IoU"] for row in figures["classes"]] == pytest.approx(iou[there].tolist(), abs=1e-9)


def test_mean_equals_mmseg_where_every_class_is_present(new_metric):
    from mmseg.evaluation import IoUMetric

    pairs = list(random_pairs(5, 5))
    ours, theirs = new_metric(5), IoUMetric()
    theirs.dataset_meta = ours.dataset_meta
    for labels, truth in pairs:
        labels, truth = torch.from_numpy(labels), torch.from_numpy(truth)
        ours.add(labels, truth)
        theirs.process({}, [{"pred_sem_seg": {"data": labels}, "gt_sem_seg": {"data": truth}}])
    expected = theirs.evaluate(len(pairs))
    figures = ours.evaluate(len(pairs))
    for name in ("mIoU", "aAcc", "mAcc"):
        assert figures[name] == pytest.approx(expected[name], abs=0.0051)


def test_an_absent_class_that_is_predicted_does_not_enter_the_mean(new_metric):
    metric = new_metric(3)
    metric.add(torch.tensor([[0, 0, 2, 1]]), torch.tensor([[0, 0, 0, 1]]))
    figures = metric.evaluate(1)
    assert figures["num_classes_present"] == 2
    assert figures["mIoU"] == pytest.approx(100 * (2 / 3 + 1) / 2)


def test_truth_without_any_class_is_an_error(new_metric):
    metric = new_metric(3)
    metric.add(torch.zeros(2, 2, dtype=torch.long), torch.full((2, 2), 255))
    with pytest.raises(ValueError, match="every pixel is ignored"):
        metric.evaluate(1)


def test_a_perfect_prediction_of_the_real_pairs_scores_100(real_data, new_metric):
    data = ADE20KDataModule(str(real_data / "ade20k_sample"), num_workers=0)
    data.setup("test")
    metric = new_metric(150)
    present = set()
    for batch in data.test_dataloader():
        truth = batch["data_samples"][0].gt_sem_seg.data[0]
        present |= set(truth.unique().tolist()) - {255}
        metric.add(torch.where(truth == 255, 7, truth), truth)
    figures = metric.evaluate(3)
    assert figures["mIoU"] == figures["aAcc"] == figures["mAcc"] == 100
    assert figures["num_classes_present"] == len(present)
