import subprocess
import sys
import time

from cgspn import __version__
from cgspn.cli import COMMANDS, TRAINER_COMMANDS, main


def test_help_lists_every_command(cgspn):
    for arguments in ([], ["-h"], ["--help"]):
        result = cgspn(*arguments)
        assert result.code == 0
        for name, summary in TRAINER_COMMANDS.items():
            assert f"  {name:<10}{summary}\n" in result.out
        for name, command in COMMANDS.items():
            assert f"  {name:<10}{command.summary}\n" in result.out


def test_version(cgspn):
    assert cgspn("--version").out == f"cgspn {__version__}\n"


def test_help_starts_fast_and_without_torch():
    code = "import sys; from cgspn.cli import main; main(['--help']); sys.exit('torch' in sys.modules)"
    start = time.perf_counter()
    assert subprocess.run([sys.executable, "-c", code], stdout=subprocess.DEVNULL).returncode == 0
    assert time.perf_counter() - start < 1.5


def test_help_of_trainer_commands(cgspn):
    result = cgspn("fit", "--help")
    assert result.code == 0
    assert result.out.startswith("usage: cgspn fit")
    for option in (
        "--run.name",
        "--checkpoint.monitor",
        "--trainer.max_epochs",
        "--ckpt_path",
        "--print_config",
    ):
        assert option in result.out


def test_help_of_a_model(cgspn):
    result = cgspn("fit", "--model.help", "tiny.TinyModule")
    assert result.code == 0
    assert "--model.encoder ENCODER" in result.out
    assert "What is trained." in result.out


def test_main_is_the_console_script():
    assert main.__module__ == "cgspn.cli"
