"""Each rule of merging, checking and precedence, through the real command line."""

import importlib

import pytest
import torch
import yaml

CHECKPOINT = "runs/base/0/checkpoints/last.ckpt"


def node(result, name="encoder"):
    return result.config["model"]["init_args"][name]


def with_encoder(config, name, **encoder):
    return config(name, {"model": {"init_args": {"encoder": encoder}}})


def test_second_file_merges_key_by_key_at_any_depth(cgspn, config):
    more = config(
        "more.yaml", {"model": {"init_args": {"encoder": {"depth": 2, "operator": {"qkv_bias": True}}}}}
    )
    encoder = node(cgspn("fit", "-c", "base.yaml", "-c", more, "--print_config"))
    assert encoder["depth"] == 2
    assert encoder["embed_dim"] == 16
    assert encoder["operator"] == {"type": "attention", "qkv_bias": True}


def test_a_file_may_leave_out_init_args_and_class_path(cgspn, config):
    more = config("more.yaml", {"model": {"encoder": {"depth": 2}, "lr": 0.5}})
    result = cgspn("fit", "-c", "base.yaml", "-c", more, "--print_config")
    assert node(result)["depth"] == 2
    assert node(result)["embed_dim"] == 16
    assert node(result, "lr") == 0.5


@pytest.mark.parametrize("prefix", ["--model.encoder", "--model.init_args.encoder"])
@pytest.mark.parametrize("equals", [True, False])
def test_nested_dotted_flags(cgspn, prefix, equals):
    flags = {".depth": 3, ".operator.qkv_bias": "true", ".drop_path_rate": "1e-1", ".attention_at": "[0,2]"}
    arguments = []
    for name, value in flags.items():
        arguments += [f"{prefix}{name}={value}"] if equals else [prefix + name, value]
    encoder = node(cgspn("fit", "-c", "base.yaml", *arguments, "--print_config"))
    assert (encoder["depth"], encoder["drop_path_rate"], encoder["attention_at"]) == (3, 0.1, [0, 2])
    assert encoder["operator"] == {"type": "attention", "qkv_bias": True}
    assert encoder["embed_dim"] == 16


def test_changed_type_replaces_the_mapping_whole(cgspn, config):
    more = with_encoder(config, "more.yaml", operator={"type": "cgspn", "latent_dim": 16})
    encoder = node(cgspn("fit", "-c", "base.yaml", "-c", more, "--print_config"))
    assert encoder["operator"] == {"type": "cgspn", "latent_dim": 16}
    encoder = node(
        cgspn("fit", "-c", "base.yaml", "-c", more, "--model.encoder.operator.type=gspn2", "--print_config")
    )
    assert encoder["operator"] == {"type": "gspn2"}
    assert encoder["embed_dim"] == 16


def test_same_type_is_not_a_change(cgspn, config):
    more = with_encoder(config, "more.yaml", type="vision_encoder", operator={"type": "attention"})
    encoder = node(cgspn("fit", "-c", "base.yaml", "-c", more, "--print_config"))
    assert encoder["operator"] == {"type": "attention", "qkv_bias": False}
    assert encoder["embed_dim"] == 16


@pytest.mark.parametrize("order", [1, -1])
def test_flags_of_one_node_in_any_order(cgspn, order):
    flags = ["--model.encoder.operator.type=cgspn", "--model.encoder.operator.latent_dim=16"][::order]
    encoder = node(cgspn("fit", "-c", "base.yaml", *flags, "--print_config"))
    assert encoder["operator"] == {"type": "cgspn", "latent_dim": 16}


def test_bare_name_and_inline_mapping(cgspn):
    result = cgspn("fit", "-c", "base.yaml", "--model.encoder.operator", "gspn2", "--print_config")
    assert node(result)["operator"] == {"type": "gspn2"}
    result = cgspn(
        "fit", "-c", "base.yaml", "--model.encoder", "{type: vit_demo_patch8, depth: 2}", "--print_config"
    )
    assert node(result) == {"type": "vit_demo_patch8", "depth": 2}
    result = cgspn("fit", "-c", "base.yaml", "--model.teacher", "vit_demo_patch8", "--print_config")
    assert node(result, "teacher") == {"type": "vit_demo_patch8"}
    assert node(cgspn("fit", "-c", "base.yaml", "--model.teacher=null", "--print_config"), "teacher") is None


def test_node_without_type_is_laid_over_the_preset(cgspn, config):
    more = with_encoder(config, "more.yaml", type="cgspn_demo_patch8")
    result = cgspn(
        "fit", "-c", "base.yaml", "-c", more, "--model.encoder.operator.latent_dim=16", "--print_config"
    )
    assert node(result) == {"type": "cgspn_demo_patch8", "operator": {"type": "cgspn", "latent_dim": 16}}


def test_dataclasses_and_classes_merge_as_well(cgspn, config):
    more = config(
        "more.yaml",
        {
            "model": {"init_args": {"weights": {"far": 2}}},
            "data": {"init_args": {"length": 4}},
            "trainer": {"devices": 1},
        },
    )
    result = cgspn(
        "fit", "-c", "base.yaml", "-c", more, "--model.weights.near", 3, "--data.size", 32, "--print_config"
    )
    assert node(result, "weights") == {"near": 3.0, "far": 2.0}
    assert result.config["data"]["init_args"] == {"length": 4, "size": 32, "num_workers": 0}
    assert result.config["trainer"]["max_epochs"] == 1


def test_flags_beat_files_wherever_they_stand(cgspn, config):
    more = config("more.yaml", {"model": {"init_args": {"lr": 0.2, "encoder": {"depth": 2}}}})
    result = cgspn(
        "fit", "--model.lr=0.3", "--model.encoder.depth=3", "-c", "base.yaml", "-c", more, "--print_config"
    )
    assert (node(result, "lr"), node(result)["depth"]) == (0.3, 3)


def test_short_class_names(cgspn, config):
    more = config("more.yaml", {"model": {"class_path": "OtherModule"}, "data": "TinyData"})
    importlib.import_module("tiny")  # A class has a short name once its module is imported.
    flags = ["--trainer.callbacks+=EarlyStopping", "--trainer.callbacks.monitor=val/loss"]
    result = cgspn("fit", "-c", "base.yaml", "-c", more, *flags, "--print_config")
    assert result.config["model"]["class_path"] == "tiny.OtherModule"
    assert node(result)["embed_dim"] == 16
    assert (
        result.config["trainer"]["callbacks"][0]["class_path"] == "lightning.pytorch.callbacks.EarlyStopping"
    )


def test_printed_config_gives_the_same_config(cgspn):
    first = cgspn("fit", "-c", "base.yaml", "--model.encoder.operator.type=cgspn", "--print_config")
    with open("printed.yaml", "w") as file:
        file.write(first.out)
    assert cgspn("fit", "-c", "printed.yaml", "--print_config").config == first.config


@pytest.fixture
def trained(cgspn):
    assert cgspn("fit", "-c", "base.yaml", "--model.encoder.operator=gspn2", "--model.lr=0.01").code == 0
    return CHECKPOINT


def test_checkpoint_beats_defaults_and_loses_to_files_and_flags(cgspn, config, trained):
    data = config("data.yaml", {"data": {"class_path": "tiny.TinyData"}})
    result = cgspn("test", "-c", data, "--ckpt_path", trained, "--print_config")
    assert result.config["model"]["class_path"] == "tiny.TinyModule"
    assert node(result, "lr") == 0.01
    assert (node(result)["operator"], node(result)["embed_dim"]) == ({"type": "gspn2"}, 16)

    result = cgspn("test", "-c", "base.yaml", "--ckpt_path", trained, "--print_config")
    assert node(result, "lr") == 0.01
    assert node(result)["operator"] == {"type": "attention", "qkv_bias": False}

    more = config("more.yaml", {"model": {"init_args": {"lr": 0.2}}})
    result = cgspn("test", "-c", data, "-c", more, "--ckpt_path", trained, "--print_config")
    assert node(result, "lr") == 0.2
    flags = ["--model.lr=0.3", "--model.encoder.drop_path_rate=0.5"]
    result = cgspn("test", "-c", data, "-c", more, "--ckpt_path", trained, *flags, "--print_config")
    assert node(result, "lr") == 0.3
    assert (node(result)["operator"], node(result)["drop_path_rate"]) == ({"type": "gspn2"}, 0.5)


def test_override_takes_effect_in_the_module_and_in_the_new_checkpoint(cgspn, trained):
    flags = ["--model.encoder.drop_path_rate=0.5", "--model.weights.far=7", "--trainer.max_epochs=2"]
    result = cgspn("fit", "-c", "runs/base/0/config.yaml", "--ckpt_path", trained, *flags)
    assert result.code == 0
    stored = torch.load("runs/base/1/checkpoints/last.ckpt", weights_only=True)["hyper_parameters"]
    assert stored["encoder"]["drop_path_rate"] == 0.5
    assert stored["encoder"]["operator"] == {"type": "gspn2"}
    assert stored["weights"] == {"near": 1.0, "far": 7.0}
    assert (
        yaml.safe_load(open("runs/base/1/config.yaml"))["model"]["init_args"]["encoder"] == stored["encoder"]
    )


def test_checkpoint_of_another_class_is_an_error(cgspn, trained):
    result = cgspn("fit", "-c", "base.yaml", "--model.class_path=tiny.OtherModule", "--ckpt_path", trained)
    assert result.error.startswith(
        f"{trained} holds a TinyModule, not a OtherModule; --ckpt_path continues the same"
    )


def test_checkpoint_that_does_not_fit_is_an_error(cgspn, trained):
    result = cgspn("test", "-c", "base.yaml", "--ckpt_path", trained)
    assert result.code == 2
    assert "cgspn: error: The checkpoint does not fit the model: " in result.err
