"""The list of commands: what `main.py --help`, README and every command's own help are made from."""

import subprocess
import sys

import pytest

import main
from model.errors import ConfigError
from utils.commands import registry
from utils.commands.registry import COMMANDS
from utils.run.environment import VERSION
from utils.run.folder import ROOT
from utils.text import text_between


def test_help_lists_every_command_with_a_line(capsys):
    assert main.main(["--help"]) == 0
    lines = capsys.readouterr().out.splitlines()
    for command in COMMANDS.values():
        assert sum(line.split()[:1] == [command.name] and line.endswith(command.summary) for line in lines) == 1
    assert max(map(len, lines)) <= 100


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_runs_by_its_name_and_has_help(name, capsys):
    with pytest.raises(SystemExit) as stop:
        main.main([name, "--help"])
    assert stop.value.code == 0 and f"main.py {name}" in capsys.readouterr().out.replace("[train]", "train")
    assert name == registry.TRAIN or callable(COMMANDS[name].load())
    with pytest.raises(ConfigError, match="--no_such_flag is not known"):
        COMMANDS[name].parser().parse_args([*(["x"] * 2 if name == "compare" else []), "--no_such_flag"])


def test_no_word_means_train():
    assert registry.find([]) == (COMMANDS["train"], [])
    assert registry.find(["--lr", "1"]) == (COMMANDS["train"], ["--lr", "1"])
    assert registry.find(["tables", "runs"]) == (COMMANDS["tables"], ["runs"])


@pytest.mark.parametrize("words,message", [
    (["evalute", "--run", "x"], "'evalute' is not a command. Did you mean evaluate?"),
    (["qqq"], "'qqq' is not a command. See: main.py --help"), (["tables", "runs", "--layuot", "x"], "mean --layout?"),
    (["sweep"], "required: file")])
def test_a_misspelt_word_gets_one_line(words, message, capsys):
    assert main.main(words) == 2
    told = capsys.readouterr()
    assert message in told.err and told.err.count("\n") == 1 and not told.out


def test_readme_shows_the_list():
    assert text_between(ROOT / "README.md", "commands") == registry.markdown_table()


def test_version_names_file_and_commit(capsys):
    assert main.main(["--version"]) == 0
    words = capsys.readouterr().out.split()
    assert words[:2] == ["S2AMSnet", VERSION.read_text().strip() + ("," if len(words) > 2 else "")]
    assert len(words) == 2 or len(words[3].rstrip("+")) == 40


@pytest.mark.slow
def test_start_up_loads_only_what_a_command_needs():
    code = "import sys, main; from utils.run.config import parse_train; parse_train([]); " \
           "print(*{'torch._dynamo', 'matplotlib', 'ray', 'sklearn.manifold'} & set(sys.modules))"
    found = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert found.stdout.split() == []
