import json
from pathlib import Path

import numpy as np
import pytest
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.loggers import CSVLogger
from PIL import Image

from cgspn.modules.init_from import InitFrom
from cgspn.segmentation import ADE20KDataModule, SegmentationModule
from cgspn.segmentation.results import EXAMPLES, RESULTS, read_examples

ENCODER = {
    "type": "vision_encoder",
    "img_size": 32,
    "patch_size": 8,
    "embed_dim": 16,
    "depth": 4,
    "num_heads": 2,
    "drop_path_rate": 0.5,
}
RAW = {"type": "raw_patches", "patch_size": 8}


def trainer(folder, **options):
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "num_sanity_val_steps": 0}
    logger = CSVLogger(folder, name="", version=0)
    return Trainer(**{"accelerator": "cpu", "logger": logger, "log_every_n_steps": 1, **quiet, **options})


def small_data(root, **arguments):
    options = {"scale": None, "crop_size": (24, 32), "augment": False, "batch_size": 4, "num_workers": 0}
    return ADE20KDataModule(str(root), **{**options, **arguments})


@pytest.fixture(scope="module")
def probe_run(tmp_path_factory, small_folder):
    """A linear probe on raw patches, which can read the classes off the colours."""
    run = trainer(tmp_path_factory.mktemp("probe"), max_epochs=40, check_val_every_n_epoch=40)
    torch.manual_seed(0)
    module = SegmentationModule(RAW, lr=0.05, cache_features=True)
    run.fit(module, small_data(small_folder, cache=True, test_batch_size=4))
    return run, module


def test_a_probe_learns_and_leaves_its_results(probe_run, small_folder):
    run, _ = probe_run
    figures = json.loads((run_folder(run) / RESULTS).read_text())
    assert figures["stage"] == "val"
    assert figures["num_classes_present"] == 4
    assert figures["mIoU"] > 90
    assert figures["mIoU"] == pytest.approx(run.callback_metrics["val/mIoU"].item(), abs=1e-3)
    assert np.mean([row["IoU"] for row in figures["classes"]]) == pytest.approx(figures["mIoU"])
    assert figures["num_parameters"] == 0
    assert figures["num_images"] == 4
    assert figures["encoder"] == RAW
    examples, classes, palette = read_examples(run_folder(run))
    assert classes[2] == "sky"
    assert palette[2].tolist() == [6, 230, 230]
    assert [e.name for e in examples] == [f"picture_{i}.png" for i in range(4)]
    first = small_folder / "images/validation/picture_0.png"
    np.testing.assert_array_equal(examples[0].image, np.asarray(Image.open(first)))
    ids = np.asarray(Image.open(small_folder / "annotations/validation/picture_0.png")).astype(int)
    np.testing.assert_array_equal(examples[0].truth, np.where(ids == 0, 255, ids - 1))
    valid = examples[0].truth != 255
    assert (examples[0].labels == examples[0].truth)[valid].mean() > 0.9


def run_folder(run):
    return Path(run.log_dir)


def test_test_equals_validation_and_a_checkpoint_brings_everything(probe_run, small_folder, tmp_path):
    run, _ = probe_run
    run.save_checkpoint(tmp_path / "last.ckpt")
    loaded = SegmentationModule.load_from_checkpoint(tmp_path / "last.ckpt", weights_only=True)
    again = trainer(tmp_path / "again")
    [tested] = again.test(loaded, small_data(small_folder), verbose=False)
    for name in ("mIoU", "aAcc", "mAcc", "num_classes_present"):
        assert tested[f"test/{name}"] == pytest.approx(run.callback_metrics[f"val/{name}"].item(), rel=1e-5)
    assert json.loads((run_folder(again) / RESULTS).read_text())["stage"] == "test"
    assert (run_folder(again) / EXAMPLES).is_file()


def test_predictions_are_label_maps_and_overlays_at_the_pictures_size(
    probe_run, small_folder, tmp_path, capsys
):
    _, module = probe_run
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    source = Image.open(small_folder / "images/validation/picture_0.png")
    source.save(pictures / "same.png")
    source.convert("L").resize((50, 70)).save(pictures / "grey.jpg")
    source.convert("RGBA").resize((7, 5)).save(pictures / "tiny.webp")
    data = small_data(None, images=str(pictures))
    data.root = None
    predictor = trainer(tmp_path / "predict")
    predictor.predict(module, data, return_predictions=False)
    folder = run_folder(predictor) / "predictions"
    assert f"label maps and overlays: {folder}\n" in capsys.readouterr().out
    assert sorted(path.name for path in folder.iterdir()) == sorted(
        f"{name}{suffix}.png" for name in ("same", "grey", "tiny") for suffix in ("", "_overlay")
    )
    for name, size in (("same", (32, 24)), ("grey", (50, 70)), ("tiny", (7, 5))):
        labels = Image.open(folder / f"{name}.png")
        assert labels.size == size
        assert np.asarray(labels).dtype == np.uint8
        assert 1 <= np.asarray(labels).min() <= np.asarray(labels).max() <= 150
    truth = np.asarray(Image.open(small_folder / "annotations/validation/picture_0.png"))
    labels = np.asarray(Image.open(folder / "same.png"))
    assert (labels == truth)[truth > 0].mean() > 0.9


def test_cached_features_train_like_computed_ones(small_folder, tmp_path):
    states = []
    for cache in (False, True):
        torch.manual_seed(0)
        module = SegmentationModule(ENCODER, cache_features=cache, lr=0.01)
        trainer(tmp_path / str(cache), max_epochs=3, limit_val_batches=0).fit(
            module, small_data(small_folder)
        )
        states.append(module.state_dict())
    assert module.features_by_picture.keys() == {
        str(small_folder / f"images/training/picture_{i}.png") for i in range(12)
    }
    for name, tensor in states[0].items():
        torch.testing.assert_close(states[1][name], tensor)


def test_a_frozen_encoder_stays_as_it_is_and_in_evaluation_mode(small_folder, tmp_path):
    module = SegmentationModule(ENCODER)
    before = {name: tensor.clone() for name, tensor in module.encoder.state_dict().items()}
    modes = []
    original = module.encoder.forward_intermediates

    def watched(*args, **kwargs):
        modes.append(any(part.training for part in module.encoder.modules()))
        return original(*args, **kwargs)

    module.encoder.forward_intermediates = watched
    trainer(tmp_path, max_epochs=2).fit(module, small_data(small_folder))
    assert modes
    assert not any(modes)
    for name, tensor in module.encoder.state_dict().items():
        assert torch.equal(tensor, before[name])
    assert module.decoder.training


def test_fine_tuning_trains_all_of_the_encoder_that_is_used(small_folder, tmp_path):
    decoder = {"type": "upernet", "channels": 16, "auxiliary_channels": 8}
    module = SegmentationModule(
        ENCODER, decoder=decoder, freeze=False, out_indices=[0, 1, 2, 3], norm=False, lr=1e-3
    )
    before = {name: p.clone() for name, p in module.encoder.named_parameters()}
    trainer(tmp_path, max_steps=3, limit_val_batches=1).fit(module, small_data(small_folder))
    changed = {name for name, p in module.encoder.named_parameters() if not torch.equal(p, before[name])}
    unused = {name for name in before if name.startswith(("head.", "norm.", "classifier."))}
    assert unused.isdisjoint(changed)
    # One bias moves all of a query's scores alike, so it may stay.
    missing = before.keys() - unused - changed
    assert all("bias" in name for name in missing)


def test_every_trained_parameter_gets_a_gradient(small_folder):
    module = SegmentationModule(ENCODER, freeze=False, out_indices=[1])
    data = small_data(small_folder)
    data.setup("fit")
    batch = next(iter(data.train_dataloader()))
    losses = module.decoder.losses(module.features(module._normalise(batch["inputs"])), batch["data_samples"])
    losses["decode_loss_ce"].backward()
    after = {
        name for name, _ in module.encoder.named_parameters() if name.startswith(("blocks.2", "blocks.3"))
    }
    trained = {name: p for name, p in module.encoder.named_parameters() if p.requires_grad}
    assert after.isdisjoint(trained)
    assert all(p.grad is not None for p in trained.values())


def test_init_from_a_checkpoint(small_folder, tmp_path):
    source = SegmentationModule(ENCODER)
    path = tmp_path / "encoder.ckpt"
    torch.save({"state_dict": source.state_dict()}, path)
    module = SegmentationModule(ENCODER, init_from=InitFrom(str(path)))
    run = trainer(tmp_path, max_epochs=1)
    run.fit(module, small_data(small_folder))
    for name, tensor in module.encoder.state_dict().items():
        torch.testing.assert_close(tensor, source.encoder.state_dict()[name])
    run.save_checkpoint(tmp_path / "probe.ckpt")
    path.unlink()
    loaded = SegmentationModule.load_from_checkpoint(tmp_path / "probe.ckpt", weights_only=True)
    trainer(tmp_path / "test").test(loaded, small_data(small_folder), verbose=False)
    resumed = trainer(tmp_path / "resumed", max_epochs=2)
    again = SegmentationModule(ENCODER, init_from=InitFrom(str(path)))
    resumed.fit(again, small_data(small_folder), ckpt_path=tmp_path / "probe.ckpt", weights_only=True)
    assert resumed.current_epoch == 2
    with pytest.raises(ValueError, match=r"no weight file .*encoder\.ckpt"):
        trainer(tmp_path / "fit", max_epochs=1).fit(module, small_data(small_folder))


def test_sliding_over_a_picture_no_larger_than_the_window_is_the_whole(small_folder, tmp_path):
    torch.manual_seed(0)
    whole = SegmentationModule(ENCODER)
    slide = SegmentationModule(ENCODER, mode="slide", crop_size=(24, 32), stride=(8, 8))
    slide.load_state_dict(whole.state_dict())
    images = torch.randn(2, 3, 24, 32)
    for module in (whole, slide):
        module.eval()
    torch.testing.assert_close(slide(images), whole(images))
    larger = torch.randn(1, 3, 40, 33)
    assert slide(larger).shape == (1, 150, 40, 33)


def test_pictures_of_unequal_sizes_share_a_batch(write_pair, tmp_path):
    generator = np.random.default_rng(0)
    for name, size in (("a", (24, 32)), ("b", (16, 40)), ("c", (24, 32))):
        image = generator.integers(0, 255, (*size, 3), np.uint8)
        write_pair(tmp_path, "validation", name, image, generator.integers(1, 4, size).astype(np.uint8))
    torch.manual_seed(0)
    module = SegmentationModule(ENCODER)
    figures = [
        trainer(tmp_path / str(size)).test(module, small_data(tmp_path, test_batch_size=size), verbose=False)
        for size in (1, 3)
    ]
    assert figures[0] == figures[1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"mode": "sliding"}, "mode='sliding' is unknown; valid: whole, slide"),
        ({"mode": "slide", "crop_size": (8, 8), "stride": (9, 8)}, r"stride=\(9, 8\)"),
        ({"out_indices": [4]}, "block 4; valid: -4 to 3"),
        ({"out_indices": [2, 1]}, "ascending order"),
        ({"out_indices": []}, "ascending order"),
        ({"cache_features": True, "freeze": False}, "cache_features=True needs freeze=True"),
        ({"decoder": {"type": "upernet"}}, "upernet needs 4"),
        ({"encoder": {"type": "vit_dem0"}}, "Unknown backbone 'vit_dem0'"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message) as caught:
        SegmentationModule(**{"encoder": ENCODER, **arguments})
    assert "\n" not in str(caught.value)


def test_cached_features_need_unaugmented_pictures(small_folder, tmp_path):
    module = SegmentationModule(ENCODER, cache_features=True)
    with pytest.raises(ValueError, match=r"data\.augment"):
        trainer(tmp_path, max_epochs=1).fit(module, small_data(small_folder, augment=True))
