import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from cgspn.segmentation import ADE20KDataModule


def validation_samples(root, **arguments):
    data = ADE20KDataModule(str(root), num_workers=0, **arguments)
    data.setup("validate")
    return [(batch["inputs"][0], batch["data_samples"][0]) for batch in data.val_dataloader()]


def training_batches(root, **arguments):
    data = ADE20KDataModule(str(root), num_workers=0, **arguments)
    data.setup("fit")
    return list(data.train_dataloader())


@pytest.fixture
def one_pair(tmp_path, write_pair):
    image = np.zeros((6, 9, 3), np.uint8)
    image[..., 0] = 250
    labels = np.full((6, 9), 7, np.uint8)
    for split in ("training", "validation"):
        write_pair(tmp_path, split, "a", image, labels)
    return tmp_path


class TestRealPairs:
    @pytest.fixture
    def folder(self, real_data):
        return real_data / "ade20k_sample"

    def test_ids_are_reduced_by_one_and_zero_is_ignored(self, folder):
        samples = validation_samples(folder)
        assert len(samples) == 3
        for _, sample in samples:
            name = sample.seg_map_path
            ids = np.asarray(Image.open(name)).astype(int)
            expected = np.where(ids == 0, 255, ids - 1)
            np.testing.assert_array_equal(sample.gt_sem_seg.data[0].numpy(), expected)

    def test_pictures_are_resized_and_label_maps_are_not(self, folder):
        for picture, sample in validation_samples(folder, scale=(2048, 256)):
            assert min(picture.shape[1:]) == 256
            assert sample.gt_sem_seg.shape == sample.ori_shape
            assert min(sample.ori_shape) > 256

    def test_pixels_are_the_files_pixels(self, folder):
        for picture, sample in validation_samples(folder, scale=None):
            pixels = np.asarray(Image.open(sample.img_path).convert("RGB"))
            np.testing.assert_array_equal(picture.flip(0).permute(1, 2, 0).numpy(), pixels)

    def test_class_names_are_those_of_the_benchmark(self, folder):
        data = ADE20KDataModule(str(folder))
        data.setup("test")
        listed = (folder / "objectInfo150.txt").read_text()
        names = data.datasets["test"].metainfo["classes"]
        assert len(names) == 150
        assert all(name.strip().split(",")[0] in listed for name in names[:20])


@pytest.mark.parametrize("reduce_zero_label", [True, False])
def test_reduce_zero_label_decides_what_id_0_means(one_pair, write_pair, reduce_zero_label):
    labels = np.array([[0, 1], [149, 255]], np.uint8)
    write_pair(one_pair, "validation", "a", np.zeros((2, 2, 3), np.uint8), labels)
    [(_, sample)] = validation_samples(one_pair, reduce_zero_label=reduce_zero_label)
    expected = [255, 0, 148, 255] if reduce_zero_label else [0, 1, 149, 255]
    assert sample.gt_sem_seg.data.flatten().tolist() == expected


@pytest.mark.parametrize("augment", [True, False])
def test_training_samples_have_the_crops_size(small_folder, augment):
    batches = training_batches(small_folder, augment=augment, scale=None, crop_size=(20, 28), batch_size=5)
    assert len(batches) == 2
    for batch in batches:
        assert {picture.shape for picture in batch["inputs"]} == {(3, 20, 28)}
        assert {sample.gt_sem_seg.shape for sample in batch["data_samples"]} == {(20, 28)}
        ids = torch.cat([sample.gt_sem_seg.data.flatten() for sample in batch["data_samples"]]).unique()
        assert set(ids.tolist()) <= {2, 4, 16, 149, 255}


def test_a_crop_beyond_the_picture_is_padded_with_ignored_pixels(one_pair):
    [batch] = training_batches(one_pair, scale=None, crop_size=(12, 12), ratio_range=(0.5, 0.5), batch_size=1)
    labels = batch["data_samples"][0].gt_sem_seg.data[0]
    assert labels.shape == (12, 12)
    assert (labels[:4, :6] == 6).all()
    assert (labels[4:] == 255).all()


def test_label_stride_keeps_the_middle_of_each_cell(small_folder):
    shared = {"augment": False, "crop_size": (24, 32), "batch_size": 12}
    torch.manual_seed(0)
    [full] = training_batches(small_folder, **shared)
    torch.manual_seed(0)
    [sparse] = training_batches(small_folder, label_stride=8, **shared)
    for a, b in zip(full["data_samples"], sparse["data_samples"], strict=True):
        torch.testing.assert_close(a.gt_sem_seg.data[:, 4::8, 4::8], b.gt_sem_seg.data)


def test_cached_samples_are_the_same(small_folder):
    data = ADE20KDataModule(str(small_folder), augment=False, cache=True, crop_size=(24, 32), num_workers=0)
    data.setup("validate")
    dataset = data.datasets["test"]
    assert dataset[1]["inputs"] is dataset[1]["inputs"]
    plain = ADE20KDataModule(str(small_folder), augment=False, crop_size=(24, 32), num_workers=0)
    plain.setup("validate")
    torch.testing.assert_close(dataset[1]["inputs"], plain.datasets["test"][1]["inputs"])


class TestBadInput:
    def fails(self, root, message, **arguments):
        with pytest.raises(ValueError, match=message) as caught:
            validation_samples(root, **arguments)
        assert "\n" not in str(caught.value)

    def test_missing_folder(self, tmp_path):
        self.fails(tmp_path / "nowhere", "nowhere/images/validation")

    def test_missing_annotations(self, one_pair):
        shutil.rmtree(one_pair / "annotations")
        self.fails(one_pair, "annotations/validation")

    def test_empty_folder(self, one_pair):
        (one_pair / "images/validation/a.png").unlink()
        self.fails(one_pair, "images/validation holds no picture")

    def test_missing_label_map(self, one_pair):
        (one_pair / "annotations/validation/a.png").unlink()
        self.fails(one_pair, r"a\.png has no label map")

    def test_mixed_suffixes(self, one_pair):
        Image.new("RGB", (9, 6)).save(one_pair / "images/validation/b.jpg")
        self.fails(one_pair, r"mixes \.jpg, \.png")

    def test_sizes_that_differ(self, one_pair):
        Image.new("L", (8, 6), 7).save(one_pair / "annotations/validation/a.png")
        self.fails(one_pair, r"a\.png has shape \(6, 8\), its image \(6, 9\)")

    def test_colour_label_map(self, one_pair):
        Image.new("RGB", (9, 6)).save(one_pair / "annotations/validation/a.png")
        self.fails(one_pair, r"a\.png has shape \(6, 9, 3\)")

    def test_ids_of_16_bits(self, one_pair):
        Image.fromarray(np.full((6, 9), 259, np.uint16)).save(one_pair / "annotations/validation/a.png")
        self.fails(one_pair, r"a\.png holds the id 259; ids are 0 to 255")

    def test_unknown_id(self, one_pair):
        Image.new("L", (9, 6), 151).save(one_pair / "annotations/validation/a.png")
        self.fails(one_pair, r"a\.png holds the id 151; valid: 1 to 150")

    @pytest.mark.parametrize("kind", ["images", "annotations"])
    def test_truncated_file(self, one_pair, kind):
        generator = np.random.default_rng(0)
        path = one_pair / kind / "validation/a.png"
        noise = generator.integers(0, 99, (60, 90, 3), np.uint8)
        Image.fromarray(noise if kind == "images" else noise[..., 0]).save(path)
        path.write_bytes(path.read_bytes()[:1500])
        self.fails(one_pair, rf"Cannot read the (image|label map) .*{kind}/validation/a\.png")

    def test_truncated_jpeg(self, one_pair):
        (one_pair / "images/validation/a.png").unlink()
        path = one_pair / "images/validation/a.jpg"
        Image.fromarray(np.random.default_rng(0).integers(0, 255, (60, 90, 3), np.uint8)).save(path)
        path.write_bytes(path.read_bytes()[:2000])
        self.fails(one_pair, r"Cannot read the image .*a\.jpg")

    def test_no_root_and_no_pictures(self):
        with pytest.raises(ValueError, match="No root is given"):
            ADE20KDataModule().setup("fit")
        with pytest.raises(ValueError, match="No images are given"):
            ADE20KDataModule().setup("predict")

    def test_batch_size_beyond_the_data(self, one_pair):
        with pytest.raises(ValueError, match="batch_size=4 is more than the 1"):
            ADE20KDataModule(str(one_pair), batch_size=4).setup("fit")

    def test_cache_of_random_samples(self):
        with pytest.raises(ValueError, match="cache=True"):
            ADE20KDataModule(cache=True)

    def test_predict_folder(self, tmp_path):
        with pytest.raises(ValueError, match="holds no picture"):
            ADE20KDataModule(images=str(tmp_path)).setup("predict")
        Image.new("RGB", (3, 3)).save(tmp_path / "a.png")
        Image.new("RGB", (3, 3)).save(tmp_path / "a.jpg")
        with pytest.raises(ValueError, match="several pictures named a"):
            ADE20KDataModule(images=str(tmp_path)).setup("predict")
