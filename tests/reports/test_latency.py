from cgspn.reports.latency import default_sizes, measure

RAW = {"type": "raw_patches"}
TINY = {"type": "vision_encoder", "img_size": 16, "patch_size": 8, "embed_dim": 8, "depth": 1, "num_heads": 1}


def test_sizes_come_from_the_first_encoder_that_has_one():
    assert default_sizes([RAW, TINY]) == [16, 64]
    assert default_sizes([{**TINY, "img_size": [32, 48]}]) == [48, 192]
    assert default_sizes([{"type": "vit_demo_patch8"}]) == [64, 256]
    assert default_sizes([RAW]) == []


def test_equal_encoders_are_measured_once_and_work_costs_time():
    deep = {**TINY, "depth": 12, "embed_dim": 64}
    times = measure([TINY, deep, TINY], [64])
    assert times[0] is times[2]
    assert times[1][64] > times[0][64] > 0
