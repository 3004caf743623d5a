"""Data files as plain values: no file makes the program import, run out of memory or wait."""

import json
import math
import os
import sys
import tracemalloc
from dataclasses import fields
from pathlib import Path

import pandas as pd
import pytest
import yaml

from datasets.errors import SceneFormatError
from datasets.readers import SceneFile, load_scene, read_description
from model.errors import ConfigError, UserError
from model.plain import LARGEST_YAML, read_json, read_yaml
from utils.bench.bench import BenchConfig
from utils.commands.apply import Choice, predict
from utils.commands.checks import bench
from utils.commands.registry import COMMANDS
from utils.run.config import TrainConfig, parse_train, read_config
from utils.run.folder import RunFolder
from utils.run.planned import planned
from utils.sweep.file import SweepFile
from utils.sweep.sweep import SweepConfig, sweep_runs
from utils.tables.published import published_tables
from utils.tables.runs import read_info

CANARY = "canary_of_the_data"
NAMES = (f"{CANARY}.Thing", {"class_path": f"{CANARY}.Thing"}, {"class_path": f"{CANARY}.Thing", "init_args": {}},
         {"init_args": {"class_path": f"{CANARY}.Thing"}}, [f"{CANARY}.Thing"], [{"class_path": f"{CANARY}.Thing"}])
FORMS = ("{}", "{}.class_path", "{}.init_args", "{}+", "{}.severity", "{}.file", "{}.severity.class_path")
SWEEP = {"config": [], "settings": {}, "pairs": [{}], "variants": [{"method": "erm"}], "seeds": [0],
         "save_path": "runs"}


@pytest.fixture
def canary(tmp_path, monkeypatch):
    """A module that can be imported, beside the data; afterwards it has not been."""
    (tmp_path / f"{CANARY}.py").write_text("class Thing:\n    pass\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    yield
    assert sys.modules.pop(CANARY, None) is None, "a data file had it imported"


def read_in_every_way(read, path: Path, whole: dict, names, errors=(UserError,)) -> int:
    """Give every field every dotted name in every form; only errors of the program's own may come.  How many came."""
    refused = 0
    for key in (*(form.format(name) for name in names for form in FORMS), "config", "class_path", "__path__"):
        for value in NAMES:
            path.write_text(yaml.safe_dump(whole | {key: value}))
            try:
                read()
            except errors:
                refused += 1
            assert CANARY not in sys.modules, (key, value)
    return refused


def test_no_field_of_a_scene_file_imports(pair, canary):
    whole = yaml.safe_load(pair.source.read_text())
    assert read_in_every_way(lambda: read_description(pair.source), pair.source, whole,
                             [entry.name for entry in fields(SceneFile)]) > 300


@pytest.mark.slow
def test_no_field_of_a_runs_config_imports(tmp_path, canary):
    about = {"source": "a", "target": "b", "sha256": {}, "status": "done", "uses_target": False}
    (tmp_path / "run.json").write_text(json.dumps(about))
    assert read_in_every_way(lambda: read_info(RunFolder(tmp_path)), tmp_path / "config.yaml", {},
                             [entry.name for entry in fields(TrainConfig)], UserError) > 1000


@pytest.mark.slow_but("Choice-<lambda>")
@pytest.mark.parametrize("kind, read", [
    (TrainConfig, lambda path: parse_train(["--config", str(path)])), (TrainConfig, read_config),
    (TrainConfig, lambda path: parse_train(["--resume", str(path.parent)])),
    (Choice, lambda path: predict(["--config", str(path)])),
    (BenchConfig, lambda path: bench(["--config", str(path)]))])
def test_no_field_of_a_config_file_imports(tmp_path, canary, monkeypatch, kind, read):
    monkeypatch.setattr("utils.commands.checks.run_bench", lambda config, words: None)
    path = tmp_path / "config.yaml"
    assert read_in_every_way(lambda: read(path), path, {}, [entry.name for entry in fields(kind)]) > 100


@pytest.mark.slow
@pytest.mark.parametrize("part", [entry.name for entry in fields(SweepFile)])
def test_no_field_of_a_sweep_file_imports(tmp_path, canary, part):
    path = tmp_path / "sweep.yaml"
    names = [entry.name for entry in fields(TrainConfig)]
    for name in ("", "simulation", *names[::8]):
        for value in NAMES:
            inner = {name: value} if name else value
            for content in (inner, [inner], {"config": inner}):
                path.write_text(yaml.safe_dump(SWEEP | {part: content}))
                try:
                    sweep_runs(path, SweepConfig())
                except ConfigError:
                    continue


@pytest.mark.parametrize("name", ["simulation", "method", "backend", "htcnn_weights"])
def test_no_field_of_a_plan_or_of_published_numbers_imports(tmp_path, canary, name):
    for value in NAMES:
        content = {"a sweep": [{"seeds": [0], "settings": {name: value}}]}
        (tmp_path / "planned.json").write_text(json.dumps(content))
        (tmp_path / "published.yaml").write_text(yaml.safe_dump({"pairs": {}, "methods": value, "source": value}))
        none = pd.DataFrame({"pair": [], "folder": []})
        for read in (lambda: list(planned([tmp_path])),
                     lambda: published_tables(none, False, tmp_path / "published.yaml")):
            try:
                read()
            except UserError:
                continue


WORDS = (f"{CANARY}.Thing", CANARY, f"[{CANARY}.Thing]", f"{{class_path: {CANARY}.Thing}}",
         f'{{"class_path": "{CANARY}.Thing", "init_args": {{}}}}', f"{{severity: {CANARY}.Thing}}", "FILE")


@pytest.mark.slow_but(*COMMANDS.keys() - {"train"})
@pytest.mark.parametrize("command", COMMANDS)
def test_no_flag_of_a_command_imports(tmp_path, canary, command):
    """Every flag, with and without what jsonargparse appends to flags, and with a file that holds the name."""
    (tmp_path / "file.yaml").write_text(f"class_path: {CANARY}.Thing\n")
    parser, refused = COMMANDS[command].parser(), 0
    read = parse_train if command == "train" else lambda words: parser.instantiate(parser.parse_args(words))
    for flag in set(parser.flags()) - {"--help", "--print_config"}:
        for value in WORDS:
            value = value.replace("FILE", str(tmp_path / "file.yaml"))
            for words in ([f"{flag}={value}"], [flag, value], [f"{flag}.class_path={value}"]):
                try:
                    read(words)
                except UserError:
                    refused += 1
                assert CANARY not in sys.modules, words
    assert refused or command == "parity"


@pytest.mark.parametrize("value", [f"{CANARY}.Thing", "null", "5", "[1]", "x", "a.b", "{severity: {a: 1}}",
                                   "{seed: [1]}", "{a: 1}", "{severity: !!python/name:os.x ''}",
                                   "{severity: &a [*a]}", "none.yaml"])
def test_settings_in_settings_have_their_form_on_the_command_line_too(tmp_path, canary, value):
    for words in ([f"--simulation={value}"], ["--simulation", value]):
        with pytest.raises(ConfigError, match="simulation"):
            parse_train(words)
    (tmp_path / "own.yaml").write_text("severity: 2e0\n")
    for value in (str(tmp_path / "own.yaml"), "{severity: 2}", '{"severity": 2.0}'):
        assert parse_train(["--simulation", value]).simulation.severity == 2


def test_a_config_key_shows_no_other_file(tmp_path):
    (tmp_path / "secret").write_text("the secret of another file")
    (tmp_path / "a.yaml").write_text(f"config: {tmp_path / 'secret'}\n")
    with pytest.raises(ConfigError, match="config is not known") as error:
        read_config(tmp_path / "a.yaml")
    assert "the secret" not in str(error.value)


@pytest.mark.parametrize("text", ["GIN_ch:", "ablate: null", "simulation: {seed: null}", "source_name: ~"])
def test_null_stands_only_where_it_means_something(tmp_path, text):
    path = write(tmp_path / "a.yaml", text)
    for read in (read_config, lambda path: parse_train(["--config", str(path)])):
        with pytest.raises(ConfigError, match=r"a\.yaml: .*must not be null\. Leave it out"):
            read(path)
    assert read_config(write(path, "target_name: null\npatience: null\ngenerators: null")).target_name is None


def test_numbers_and_words_keep_their_meaning(tmp_path):
    path = tmp_path / "a.yaml"
    path.write_text("lr: 1e-3\nmi_weight: 5\nmax_epoch: 1_0\nbatch_size: 0x10\nrun_name: 2020-01-01\nsave_path: '1e3'\n"
                    "ablate+: [no_noise]\nsimulation.severity: '2e0'\ncontrast_layers: '[0, 4]'\noracle: yes\n")
    config = read_config(path)
    assert (config.lr, config.mi_weight, config.max_epoch, config.batch_size) == (0.001, 5.0, 10, 16)
    assert (config.run_name, config.save_path, config.ablate) == ("2020-01-01", "1e3", ["no_noise"])
    assert (config.simulation.severity, config.contrast_layers, config.oracle) == (2.0, [0, 4], True)
    assert math.isinf(read_yaml(write(tmp_path / "b.yaml", "a: .inf"))["a"])


def write(path: Path, text: str | bytes) -> Path:
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def alias_bomb(form: str, levels: int = 30) -> str:
    return "a0: &a0 {x: [lol, lol]}\n" + "".join(
        f"a{n}: &a{n} {form.format(f'*a{n - 1}')}\n" for n in range(1, levels))


BOMBS = {"aliases": alias_bomb("[{0}, {0}, {0}, {0}, {0}, {0}, {0}, {0}]"),
         "merges": alias_bomb("{{<<: [{0}, {0}, {0}]}}"),
         "an alias of itself": "a: &a [*a]", "a key of itself": "a: &a {*a : 1}", "a deep list": "[" * 100_000,
         "a deep list, closed": "[" * 5_000 + "]" * 5_000, "deep blocks": "".join(" " * n + "- \n" for n in range(900)),
         "a comment of 50 MB": b"#" * 50_000_000, "a number of 5,000 digits": "seed: " + "9" * 5_000,
         "a quoted number": f"seed: '{'9' * 5_000}'", "a hexadecimal number": "seed: 0x" + "f" * 5_000,
         "a float": f"lr: 1.{'0' * 5_000}1", "base 60": "seed: 1" + ":59" * 10_000, "no digits": "seed: !!int ''",
         "a bad tag": "seed: !!float x", "a bad boolean": "oracle: !!bool perhaps", "a Python object":
         "seed: !!python/object/apply:os.getpid []", "a date": "seed: !!timestamp x",
         "bytes": "run_name: !!binary aGk=",
         "a set": "ablate: !!set {no_noise}", "pairs": "simulation: !!omap [seed: 1]", "NUL": b"seed: 1\x00\n",
         "a number for a name": "1: 2", "no name": "? [a, b]\n: 1", "no text": b"\xff\xfe\x00", "a name of 300 letters":
         "a" * 300 + ": 1", "two documents": "seed: 1\n---\nseed: 2", "many values": "ablate: [" + "1," * 200_000 + "]",
         "nothing": "", "a word": "seed", "a NUL in a name": 'run_name: "a\\0b"\n'}


@pytest.mark.parametrize("name", BOMBS)
def test_a_yaml_file_that_is_a_trap_is_refused(tmp_path, name):
    path = write(tmp_path / "trap.yaml", BOMBS[name])
    for read, kind in ((read_config, ConfigError), (read_description, SceneFormatError)):
        tracemalloc.start()
        with pytest.raises(kind) as error:
            read(path)
        highest = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert "trap.yaml" in str(error.value) and "\n" not in str(error.value) and len(str(error.value)) < 1_000
        assert highest < 500 * LARGEST_YAML


@pytest.mark.parametrize("content", ["[" * 200_000, f'{{"a": {"9" * 5_000}}}', "", "{", b"\xff", '{"a": 1}x'])
def test_a_json_file_that_is_a_trap_is_refused(tmp_path, content):
    with pytest.raises(ConfigError, match="planned.json"):
        read_json(write(tmp_path / "planned.json", content))


@pytest.mark.parametrize("kind", ["fifo", "folder", "device", "missing"])
def test_only_regular_files_are_read(tmp_path, kind):
    path = tmp_path / "a.yaml"
    {"fifo": lambda: os.mkfifo(path), "folder": path.mkdir, "device": lambda: path.symlink_to("/dev/zero"),
     "missing": lambda: None}[kind]()
    for read in (read_config, load_scene, read_yaml, read_json, lambda path: sweep_runs(path, SweepConfig()),
                 lambda path: parse_train(["--config", str(path)])):
        with pytest.raises(UserError, match="does not exist|neither a registered"):
            read(path if read is not load_scene else str(path))


@pytest.mark.parametrize("name", ["a" * 300, "a\0b", "/".join("a" * 200 for _ in range(30)),
                                  "a" * 300 + ".yaml", "\udcff.yaml"])
def test_names_that_no_file_can_have_are_refused(tmp_path, name):
    for read in (load_scene, read_config, lambda name: sweep_runs(Path(name), SweepConfig())):
        with pytest.raises(UserError):
            read(name)
