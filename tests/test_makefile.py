"""What `make` would do, without doing it."""

import os
import re
import shlex
import subprocess
from pathlib import Path

import pytest
from launching import ROOT

import run_finetune_geo
from geomae.reporting.heads_tables import HEADS
from geomae.training import DataArguments, FinetuneArguments, GeoMAETrainingArguments, parse_config


def outside_make() -> dict[str, str]:
    """The environment as it is where these tests are not run by `make test`."""
    return {key: value for key, value in os.environ.items() if key not in ("MAKEFLAGS", "MFLAGS", "MAKELEVEL")}


def dry_run(target: str, tmp_path: Path, *words: str) -> list[list[str]]:
    """The commands of a target of which nothing is made yet."""
    given = [f"INSTALLED={ROOT / 'Makefile'}", f"EARTH={tmp_path}/earth", f"HEADS={tmp_path}/heads", *words]
    environment = outside_make() | {"GEOMAE_SHARED_DATA": str(tmp_path)}
    for folder in ("geotags", "earth"):
        (tmp_path / folder).mkdir(exist_ok=True)
    made = subprocess.run(
        ["make", "-n", target, *given], cwd=ROOT, check=True, capture_output=True, text=True, env=environment
    )
    return [shlex.split(line) for line in made.stdout.replace("\\\n", " ").splitlines()]


def option(command: list[str], name: str) -> str:
    return command[command.index(name) + 1]


def of_script(commands: list[list[str]], name: str) -> list[list[str]]:
    return [command for command in commands if name in command]


@pytest.fixture(scope="module")
def heads(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[list[str]]]:
    folder = tmp_path_factory.mktemp("make")
    return folder, dry_run("heads", folder)


def test_heads_trains_every_head_on_every_seed_and_judges_what_it_trained(heads: tuple[Path, list[list[str]]]) -> None:
    folder, commands = heads
    trained = [option(command, "--output_dir") for command in of_script(commands, "run_finetune_geo.py")]
    judged = [option(command, "--checkpoint") for command in of_script(commands, "run_evaluate_geo.py")]
    calibrated = [option(command, "--checkpoint") for command in commands if "calibrate" in command]
    assert sorted(calibrated) == sorted(path for path in judged if Path(path).name not in ("tanh", "sphere"))
    assert len(set(trained)) == len(trained)
    assert sorted(trained) == sorted(judged)
    in_one_seed = {"geocells_label_smoothing", "geocells_haversine_smoothing"}
    pretrained = set(HEADS) - in_one_seed - {"retrieval"}
    splits = {"plain/pretrained": pretrained, "plain/scratch": {"tanh", "sphere", "geocells", "hybrid"}}
    splits |= {"ambiguous/pretrained": pretrained - {"geocells_hierarchy"}}
    expected = {f"plain/pretrained/seed_0/{head}" for head in in_one_seed}
    for split, names in splits.items():
        expected |= {f"{split}/seed_{seed}/{head}" for seed in (0, 1, 2) for head in names}
    assert {path.removeprefix(f"{folder}/heads/") for path in trained} == expected


def test_heads_gives_each_run_the_seed_the_photos_and_the_start_that_its_folder_says(
    heads: tuple[Path, list[list[str]]],
) -> None:
    folder, commands = heads
    for command in of_script(commands, "run_finetune_geo.py"):
        photos, start, seed, head = option(command, "--output_dir").removeprefix(f"{folder}/heads/").split("/")
        assert option(command, "--seed") == seed.removeprefix("seed_")
        assert option(command, "--data_dirs") == f"{folder}/earth/{'data' if photos == 'plain' else 'ambiguous'}"
        pretrained = f"{folder}/heads/{photos}/pretrain"
        assert option(command, "--init_from") == (pretrained if start == "pretrained" else "null")
        assert head.startswith(option(command, "--head_type"))
    pretrained = [option(command, "--output_dir") for command in of_script(commands, "run_pretrain_mae.py")]
    assert pretrained == [f"{folder}/heads/{photos}/pretrain" for photos in ("plain", "ambiguous")]


def test_heads_gives_trainings_only_options_that_they_have(heads: tuple[Path, list[list[str]]]) -> None:
    _, commands = heads
    classes = (DataArguments, FinetuneArguments, run_finetune_geo.ARCHITECTURES, GeoMAETrainingArguments)
    for command in of_script(commands, "run_finetune_geo.py"):
        words = command[command.index("run_finetune_geo.py") + 1 :]
        _, start, architecture, _ = parse_config(classes, [str(ROOT / words[0]), *words[1:]])
        assert architecture.head_type == option(command, "--head_type")
        is_free = architecture.head_type == "vmf_mixture" and architecture.num_mixture_components > 0
        has_cells = architecture.head_type not in ("tanh", "sphere") and not is_free
        assert (start.geocells is not None) == has_cells


def test_fewer_seeds_make_fewer_runs_and_leave_the_readme_alone(tmp_path: Path) -> None:
    commands = dry_run("heads", tmp_path, "SEEDS=1")
    trained = [option(command, "--output_dir") for command in of_script(commands, "run_finetune_geo.py")]
    assert len(trained) == 7 + 4 + 6 + 2  # pretrained, from scratch, on ambiguous photos, smoothed
    assert all("/seed_1/" in folder for folder in trained)
    assert not [command for command in commands if "fill" in command]


def test_help_names_every_target_that_is_no_file() -> None:
    text = (ROOT / "Makefile").read_text()
    phony = re.search(r"^\.PHONY: (.*)$", text, re.MULTILINE)[1].split()  # type: ignore[index]
    shown = subprocess.run(
        ["make", "help"], cwd=ROOT, check=True, capture_output=True, text=True, env=outside_make()
    ).stdout
    assert {line.split()[0] for line in shown.splitlines()[1:]} == set(phony)
