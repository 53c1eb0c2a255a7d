"""Bad input gives one line and exit code 2; bugs keep their traceback."""

import pytest
import torch

from cgspn.cli.errors import one_line, report_errors


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--model.encoder.type=vit_dmo_patch8"],
            "model.encoder: Unknown backbone 'vit_dmo_patch8'; did you mean 'vit_demo",
        ),
        (
            ["--model.encoder.operator=cgspm"],
            "model.encoder.operator: Unknown operator 'cgspm'; did you mean 'cgspn'? Valid: at",
        ),
        (
            ["--model.encoder.dept=3"],
            "model.encoder: Unknown argument of vision_encoder 'dept'; did you mean 'depth'? Valid: ac",
        ),
        (
            ["--model.encoder.operator.qkv_bais=true"],
            "model.encoder.operator: Unknown argument of attention 'qkv_bais'; did you mean 'qkv_bias'",
        ),
        (["--model.encoder.depth=deep"], "model.encoder.depth: expected int, got 'deep'."),
        (["--model.encoder.operator.qkv_bias=3"], "model.encoder.operator.qkv_bias: expected bool, got '3'."),
        (
            ["--model.encoder.operator", "{type: cgspn, latent_dim: wide}"],
            "model.encoder.operator.latent_dim: expected int",
        ),
        (["--model.encoder", "[1]"], "model.encoder: Unknown backbone '[1]'"),
        (["--model.encoder.depth"], "--model.encoder.depth needs a value."),
        (
            ["--model.encodr.depth=3"],
            "model: Unknown argument of TinyModule 'encodr'; did you mean 'encoder'? Valid: encoder,",
        ),
        (
            ["--model.weights.nere=3"],
            "model.weights: Unknown argument 'nere'; did you mean 'near'? Valid: far, near.",
        ),
        (["--model.lr=fast"], "model.lr: expected float, got fast"),
        (
            ["--data.lenght=3"],
            "data: Unknown argument of TinyData 'lenght'; did you mean 'length'? Valid: length, num",
        ),
        (["--data.length=long"], "data.length: expected int, got long"),
        (["--model=tiny.NoModule"], "model: 'tiny.NoModule' is not a LightningModule."),
        (["--model=tinny.TinyModule"], "model: cannot import 'tinny.TinyModule': No module named 'tinny'."),
        (["--model=TinyModul"], "Unknown model 'TinyModul'; did you mean 'TinyModule'? Valid: "),
        (["--data=TinyDta"], "Unknown data 'TinyDta'; did you mean 'TinyData'? Valid: "),
        (
            ["--trainer.max_epoch=3"],
            "trainer: Unknown option 'max_epoch'; did you mean 'max_epochs'? Valid: accelerator, ",
        ),
        (["--trainer.max_epochs=ten"], "trainer.max_epochs: expected int, got ten"),
        (["--trainer.callbacks=EarlyStoping"], "trainer.callbacks: there is no class EarlyStoping"),
        (
            ["--trainr.max_epochs=3"],
            "Unknown option 'trainr'; did you mean 'trainer'? Valid: checkpoint, ckpt_path, ",
        ),
        (
            ["--trainer.accelerator=abacus"],
            "You selected an invalid accelerator name: `accelerator='abacus'`.",
        ),
        (["--checkpoint.every_n_steps=0"], "checkpoint.every_n_steps=0 must be at least 1."),
        (["--run.name=../elsewhere"], "run.name='../elsewhere' must be a folder name below run.root='runs'."),
        (["--ckpt_path=none.ckpt"], "Checkpoint none.ckpt does not exist; give the path of a .ckpt file."),
        (["--ckpt_path=last"], "Checkpoint last does not exist; give the path of a .ckpt file."),
        (["--ckpt_path=base.yaml"], "base.yaml is not a readable checkpoint: it is damaged"),
        (["-c", "none.yaml"], "Config file none.yaml does not exist."),
        (["-c"], "-c needs the path of a config file."),
        (["stray"], "Unexpected argument 'stray'; options start with --."),
    ],
    ids=lambda value: " ".join(value)[:40] if isinstance(value, list) else None,
)
def test_bad_arguments(cgspn, arguments, message, tmp_path):
    assert cgspn("fit", "-c", "base.yaml", *arguments).error.startswith(message)
    assert not list(tmp_path.glob("runs/**/config.yaml"))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            {"model": {"init_args": {"encoder": {"depth": "deep"}}}},
            "model.encoder.depth: expected int, got 'deep'.",
        ),
        (
            {"model": {"init_args": {"encoder": {"dept": 3}}}},
            "model.encoder: Unknown argument of vision_encoder 'dept'",
        ),
        (
            {"model": {"init_args": {"encoder": [1]}}},
            "model.encoder: expected a mapping with the key 'type', got [1].",
        ),
        (
            {"model": {"init_args": {"lrr": 3}}},
            "model: Unknown argument of TinyModule 'lrr'; did you mean 'lr'?",
        ),
        (
            {"model": {"init_args": {"weights": {"farr": 3}}}},
            "model.weights: Unknown argument 'farr'; did you mean 'far'?",
        ),
        ({"model": {"init_args": {"lr": "fast"}}}, "model.lr: expected float, got fast"),
        ({"trainer": {"max_epoch": 3}}, "trainer: Unknown option 'max_epoch'; did you mean 'max_epochs'?"),
        ({"trainor": {"max_epochs": 3}}, "Unknown option 'trainor'; did you mean 'trainer'?"),
        ({"seed": 3}, "Unknown option 'seed'"),
        ({"config": "x.yaml"}, "Config file more.yaml has the key 'config'; name further files with -c."),
        ({"data": "..data"}, "data: '..data' is not the name or import path of a class."),
        ({"model": {"init_args": [1]}}, "model.init_args must be a mapping, got [1]."),
        ({"data": {"init_args": [1]}}, "data.init_args must be a mapping, got [1]."),
        ([1, 2], "Config file more.yaml must hold a mapping at its top level, got [1, 2]."),
    ],
    ids=str,
)
def test_bad_files(cgspn, config, content, message):
    more = config("more.yaml", content)
    assert cgspn("fit", "-c", "base.yaml", "-c", more).error.startswith(message)


def test_no_data(cgspn):
    error = cgspn("fit", "--model", "tiny.TinyModule", "--model.encoder", "vit_demo_patch8").error
    assert error.startswith(
        "No data are given; name a config file with -c, or a class with --data: ADE20KData"
    )


def test_base_classes_are_not_proposed(cgspn):
    choices = cgspn("fit").error + cgspn("fit", "-c", "base.yaml", "--data=None").error
    assert "Stage1Distillation" in choices
    assert "WebDatasetDataModule" in choices
    assert not {"ImageTextModule", "DistillationModule", "ImageDataModule"} & set(choices.split(", "))


def test_missing_arguments_are_named(cgspn):
    error = cgspn("fit", "--model", "Stage1Distillation", "--data", "tiny.TinyData").error
    assert error == "model: the following arguments are required: student, teacher"


def test_what_a_part_of_lightning_needs(cgspn):
    error = cgspn("fit", "-c", "base.yaml", "--trainer.precision=transformer-engine").error
    assert error.startswith("Requirement 'transformer_engine")


def test_file_that_is_not_yaml(cgspn, tmp_path):
    (tmp_path / "bad.yaml").write_text("model: [")
    assert cgspn("fit", "-c", "bad.yaml").error.startswith("Config file bad.yaml is not valid YAML: ")
    (tmp_path / "bad.yaml").write_bytes(b"\xff\xfe\x00")
    assert cgspn("fit", "-c", "bad.yaml").error.startswith("Config file bad.yaml is not valid YAML: ")


def test_commands(cgspn):
    assert cgspn("fitt").error == (
        "Unknown command 'fitt'; did you mean 'fit'? Valid: export, features, fit, info, list, predict, "
        "report, scenes, test, validate."
    )
    assert cgspn("fit").error.startswith(
        "No model is given; name a config file with -c, or a class with --model: "
    )


def test_options_of_other_commands(cgspn):
    assert cgspn("scenes").error == "the following arguments are required: out (cgspn scenes --help)"
    assert (
        cgspn("scenes", "out", "--numm", 3).error == "unrecognized arguments: --numm 3 (cgspn scenes --help)"
    )


def test_bugs_keep_their_traceback(cgspn):
    with pytest.raises(RuntimeError, match="The size of tensor a"):
        cgspn("fit", "-c", "base.yaml", "--model.fail=true")


def test_traceback_on_demand(cgspn, monkeypatch):
    monkeypatch.setenv("CGSPN_TRACEBACK", "1")
    result = cgspn("fit", "-c", "base.yaml", "--model.encoder.dept=3")
    assert result.code == 2
    assert "Traceback (most recent call last)" in result.err
    assert "cgspn: error: model.encoder: Unknown argument" in result.err


def test_value_errors_of_others_are_bugs():
    with pytest.raises(ValueError, match="invalid literal"), report_errors():
        int("three")
    with pytest.raises(ValueError, match="Sum of input lengths"), report_errors():
        torch.utils.data.random_split(range(3), [1, 4])


def test_missing_file(capsys):
    with report_errors() as outcome:
        open("no/such/file")
    assert outcome.code == 2
    assert capsys.readouterr().err == "cgspn: error: No such file or directory: no/such/file\n"


def test_missing_extra(capsys):
    with report_errors() as outcome:
        raise ModuleNotFoundError("No module named 'webdataset'", name="webdataset")
    assert outcome.code == 2
    assert capsys.readouterr().err == (
        "cgspn: error: webdataset is not installed; get it with: pip install 'cgspn[data]'\n"
    )
    with pytest.raises(ModuleNotFoundError), report_errors():
        import no_such_module  # noqa: F401


def test_error_of_a_loader_worker(capsys):
    text = "Caught ValueError in DataLoader worker process 0.\nTraceback\nValueError: image 7 is truncated\n"
    assert one_line(ValueError(text)) == "image 7 is truncated"
    with report_errors() as outcome:
        raise ValueError(text)
    assert outcome.code == 2
    assert capsys.readouterr().err == "cgspn: error: image 7 is truncated\n"
