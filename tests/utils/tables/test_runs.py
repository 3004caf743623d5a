"""What a run is: one reader for tables and study, so that both leave out the same runs and give the same names."""

import json
from pathlib import Path

import pytest

from model.errors import RunFolderError
from model.methods import REGISTRY
from table_runs import write_run
from utils.run.config import Simulation, TrainConfig, check, from_dict, to_dict
from utils.run.folder import RunFolder, finished_runs, method_label, run_label, run_name
from utils.tables import study
from utils.tables.collect import as_csv, collect
from utils.tables.runs import named, read_info, read_runs


def with_epochs(folder, *args, epochs=1, **settings):
    """A run folder that the study takes too."""
    write_run(folder, *args, **settings)
    run = RunFolder(folder)
    for epoch in range(1, epochs + 1):
        run.append(run.epochs, {"epoch": epoch, "seconds": 1.0, "steps": 10, "source_val": {"oa": 0.5}})
    return folder


def chosen(folders):
    return [info.folder for info, _ in read_runs(folders, lambda run, info: None)]


def test_a_recipe_is_named_where_it_means_something():
    assert {method_label(name, "released") for name in REGISTRY} == {*REGISTRY} - {"s2amsnet"} | {"s2amsnet released"}
    assert {method_label(name, "robust") for name in REGISTRY} == {f"{name} robust" for name in REGISTRY}


def test_a_folder_keeps_the_name_that_it_always_had():
    config = check(TrainConfig(source_name="SimSource", target_name="SimTarget", method="erm_gain", patch_size=7,
                               pro_dim=32, GIN_ch=12, batch_size=64, max_epoch=12, eval_interval=3, re_ratio=1, seed=0,
                               simulation=Simulation(severity=3.0)))
    assert run_name(config) == "SimSource-SimTarget_erm_gain_released_seed0_379d2f9a"
    assert run_label(config) == "erm_gain"


def test_settings_read_back():
    config = check(TrainConfig(method="erm", recipe="robust", ablate=["no_noise"], lr=0.1))
    config.simulation.severity = 2.0
    assert from_dict(to_dict(config)) == config
    older = check(TrainConfig(recipe="robust", protocol="counted"))            # of before there was a choice
    assert from_dict({"recipe": "robust"}) == older and check(TrainConfig(recipe="robust")).protocol == "sealed"
    for re_ratio, told in ((1, False), (5, True)):                            # repeated once, both protocols are one
        assert ("protocol" in to_dict(check(TrainConfig(recipe="robust", re_ratio=re_ratio)))) == told


def test_a_run_is_called_by_its_settings_whatever_it_recorded(tmp_path):
    write_run(tmp_path / "a", "erm", 0, 0.6, 0.5)
    RunFolder(tmp_path / "a").update_run(label="erm released")
    assert set(named(collect([tmp_path]))["name"]) == {"erm"}


def test_tables_and_study_tell_pairs_apart_by_the_same_names(tmp_path):
    for seed, data in enumerate(("one", "two", "three")):
        with_epochs(tmp_path / data, "erm", seed, 0.6, 0.5, data=data)
        with_epochs(tmp_path / f"{data} C", "erm", seed, 0.6, 0.5, data=data, target="C",
                    simulation={"severity": float(seed), "seed": 0})
    pairs = set(named(collect([tmp_path]))["pair"])
    assert set(study.read([tmp_path])["pair"]) == pairs and len(pairs) == 6
    assert {pair for pair in pairs if "severity" in pair} == {f"A → C (severity {k}, seed 0)" for k in range(3)}


def test_a_drawn_gap_is_part_of_a_pairs_name(tmp_path):
    for name, simulation in (("fixed", {"severity": 1.0}), ("drawn", {"severity": 1.0, "gap": "drawn"})):
        write_run(tmp_path / name, "erm", 0, 0.6, 0.5, data=name, target="C", simulation=simulation)
    runs = collect([tmp_path])
    assert set(named(runs)["pair"]) == {f"A → C (severity 1, seed 0{drawn})" for drawn in ("", ", drawn gap")}
    assert '""simulation"": {""gap"": ""drawn"", ""seed"": 0, ""severity"": 1.0}' in as_csv(runs)


def test_of_two_repetitions_the_fuller_one_stays(tmp_path, caplog):
    with_epochs(tmp_path / "a", "erm", 0, 0.6, 0.5, status="running", epochs=3)
    with_epochs(tmp_path / "b", "erm", 0, 0.6, 0.5, status="running", epochs=4)
    assert chosen([tmp_path]) == [str(tmp_path / "b")]                                   # more epochs
    with_epochs(tmp_path / "c", "erm", 0, 0.6, 0.5, epochs=2)
    with_epochs(tmp_path / "d", "erm", 0, 0.6, 0.5, epochs=2)
    assert chosen([tmp_path]) == [str(tmp_path / "c")]                                   # finished; the first of equals
    with_epochs(tmp_path / "e", "erm", 0, 0.6, 0.5, oracle=0.9, epochs=2)
    caplog.clear()
    assert chosen([tmp_path]) == [str(tmp_path / "e")]                                   # with an oracle
    assert [record.getMessage() for record in caplog.records] == [
        f"{tmp_path / name} is left out: it repeats the setting and seed of another run." for name in "abdc"]
    assert set(collect([tmp_path])["folder"]) == set(study.read([tmp_path])["folder"]) == {str(tmp_path / "e")}


def test_a_folder_that_is_given_twice_is_read_once(tmp_path, caplog):
    write_run(tmp_path / "a", "erm", 0, 0.6, 0.5)
    assert chosen([tmp_path, tmp_path / "a"]) == [str(tmp_path / "a")] and not caplog.text


@pytest.mark.parametrize("damage", [
    lambda run: run.run.write_text("{"), lambda run: run.run.unlink(), lambda run: run.config.write_text("a: [1"),
    lambda run: run.config.write_text("no_setting: 1\n"), lambda run: run.config.write_text("method: nobody\n"),
    lambda run: run.epochs.write_text("{\n")])
def test_damaged_folders_are_left_out_with_a_warning(tmp_path, caplog, damage):
    damage(RunFolder(with_epochs(tmp_path / "a", "erm", 0, 0.6, 0.5)))
    with_epochs(tmp_path / "b", "erm", 1, 0.6, 0.5)
    for read in (collect, study.read):
        caplog.clear()
        assert set(read([tmp_path])["folder"]) == {str(tmp_path / "b")}
        assert f"{tmp_path / 'a'} is left out: its records are damaged" in caplog.text


@pytest.mark.parametrize("file, entry", [("evaluation.json", "constant"), ("run.json", "classes")])
def test_scores_that_can_be_held_against_nothing_are_left_out(tmp_path, caplog, file, entry):
    for name, seed in (("a", 0), ("b", 1)):
        write_run(tmp_path / name, "erm", seed, 0.6, 0.5)
    path = tmp_path / "a" / file
    content = json.loads(path.read_text())
    del content[entry]
    path.write_text(json.dumps(content))
    assert set(collect([tmp_path])["folder"]) == {str(tmp_path / "b")} and f"it lacks '{entry}'" in caplog.text


def test_of_finished_runs_the_damaged_ones_are_named(tmp_path, caplog):
    for name, seed in (("a", 0), ("b", 1)):
        write_run(tmp_path / name, "erm", seed, 0.6, 0.5)
    (tmp_path / "a" / "run.json").write_text("{")
    run, = finished_runs([tmp_path])
    assert run.path == tmp_path / "b" and f"Left out: {tmp_path / 'a' / 'run.json'}" in caplog.text
    with pytest.raises(RunFolderError, match="evaluation.json cannot be used: it lacks the rule 'oracle'"):
        run.evaluation_of("oracle")
    (tmp_path / "b" / "evaluation.json").unlink()
    with pytest.raises(RunFolderError, match="evaluation.json .*copy"):
        run.evaluation_of("last")


def test_a_run_of_a_program_that_could_not_set_how_its_method_works_says_how_it_did(tmp_path):
    """Nobody takes it for a repetition of a run of today's method; it goes on as it began."""
    for name in ("old", "new"):
        write_run(tmp_path / name, "sagnet", 0, 0.6, 0.5)
    path = tmp_path / "old" / "config.yaml"
    path.write_text(path.read_text().replace("sagnet_adversary: norms\n", ""))
    found = {Path(info.folder).name: info.method for info, _ in read_runs([tmp_path], lambda run, info: None)}
    assert found == {"old": "sagnet adversary=early", "new": "sagnet"}
    for changes in ({}, {"data_path": "elsewhere"}):
        assert RunFolder(tmp_path / "old").read_config(**changes).sagnet_adversary == "early"
        assert RunFolder(tmp_path / "new").read_config(**changes).sagnet_adversary == "norms"
    assert RunFolder(tmp_path / "old").read_config(sagnet_adversary="norms").sagnet_adversary == "norms"


def test_weights_that_a_run_started_from_are_part_of_its_setting(tmp_path):
    for name, digest in (("a", "1" * 64), ("b", "2" * 64)):
        write_run(tmp_path / name, "htcnn", 0, 0.6, 0.5, htcnn_weights="vgg.pth")
        RunFolder(tmp_path / name).update_run(initial_weights={"vgg.pth": digest})
    assert len({info.key for info, _ in read_runs([tmp_path], lambda run, info: None)}) == 2
    assert json.loads(read_info(RunFolder(tmp_path / "a")).setting)["htcnn_weights"] == "11111111"


def test_the_file_of_runs_has_data_and_simulation_among_the_settings(tmp_path):
    write_run(tmp_path / "a", "erm", 0, 0.6, 0.5)
    header, line, *_ = as_csv(collect([tmp_path])).splitlines()
    assert header.startswith("pair,method,setting,seed,rule,epoch,source_val,shifted_source,oa,aa,kappa,macro_f1,")
    assert '""simulation"": {""seed"": 0, ""severity"": 1.0}' in line and '""data"": ""' in line
