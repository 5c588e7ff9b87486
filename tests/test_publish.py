"""A run becomes a folder of the Hub, and that a repository: tiny models, a local Hub."""

import hashlib
import json
import shutil
from pathlib import Path

import pytest
import yaml
from geocell_models import save_cell_model
from huggingface_hub import ModelCard, constants
from huggingface_hub.repocard_data import model_index_to_eval_results
from packed_photos import TINY
from report_folders import EVIL_ID, make_evaluation, make_run
from writable_hub import CHECKS_CARDS_HERE, serve_writable_hub

from geomae.checkpoints import digest_weights
from geomae.errors import ConfigError, PublishError, SourceError
from geomae.files import list_files
from geomae.publish.__main__ import main
from geomae.publish.folder import build_hub_folder
from geomae.publish.upload import upload_hub_folder
from modeling import GeoMAEConfig, GeoMAEForPreTraining

ROOT = Path(__file__).resolve().parent.parent
SECRETS = ("hf_SECRET", "/elsewhere", "alice", "PASSWORD", "somebody@N00")
CONFIG = {
    "data_dirs": ["/elsewhere/alice/mp16", "s3://key:PASSWORD@bucket/x", "hf://datasets/owner/photos"],
    "hub_token": "hf_SECRET",
    "output_dir": "/elsewhere/alice/outputs/run",
    "learning_rate": 1e-3,
    "base_learning_rate": 2e-3,
    "run_name": "a <b>run</b>",
}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A fine-tuning with an evaluation inside it, one beside it, and all that must not leave the house."""
    folder = tmp_path_factory.mktemp("outputs") / "run"
    make_run(folder, [3.0, 2.0], config=CONFIG)
    record = json.loads((folder / "run.json").read_text())
    record["command"] = "python run_finetune_geo.py /elsewhere/alice/x.yaml --hub_token hf_SECRET"
    (folder / "run.json").write_text(json.dumps(record))
    save_cell_model(folder, TINY)
    metrics = make_evaluation(folder / "im2gps", checkpoint="run", posterior=True)
    for row in (metrics, *metrics["decodings"].values()):
        row["by"]["author"] = {"largest": {"somebody@N00": 3}}
    metrics["missing"], metrics["num_missing"] = ["somebody@N00_1.jpg", "somebody@N00_2.jpg"], 2
    metrics["test_set"] |= {"in_training": ["somebody@N00_3.jpg"], "shared_with": {"im2gps3k": ["somebody@N00_4.jpg"]}}
    (folder / "im2gps" / "metrics.json").write_text(json.dumps(metrics))
    make_evaluation(folder.parent / "beside", checkpoint="run", test_seed=5)
    make_evaluation(folder.parent / "of_another", checkpoint="outputs/other", test_seed=6)
    (folder / "checkpoint-10").mkdir()
    for name in ("checkpoint-10/optimizer.pt", "training_args.bin", "log.txt", ".env", "optimizer.pt"):
        (folder / name).write_text("hf_SECRET")
    return folder


@pytest.fixture(scope="module")
def hub_folder(run):
    build_hub_folder(run, run / "hub")
    return run / "hub"


@pytest.fixture(scope="module")
def small_run(tmp_path_factory):
    """A pretraining that nobody has evaluated: a folder that is built at once."""
    run = make_run(
        tmp_path_factory.mktemp("small") / "pretrain", [1.0], pictures=[0, 10], config={"data_dirs": ["data/my"]}
    )
    GeoMAEForPreTraining(GeoMAEConfig(**TINY)).save_pretrained(run)
    return run


@pytest.fixture
def hub(monkeypatch):
    """A local Hub that the library talks to without pauses between its attempts; and who is logged in."""
    with serve_writable_hub() as (address, handler):
        monkeypatch.setattr(constants, "ENDPOINT", address)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda seconds: None)
        monkeypatch.setenv("HF_TOKEN", "hf_of_the_test")
        yield handler


def numbers_of(folder):
    return ModelCard.load(folder / "README.md").data.eval_results


def test_folder_holds_what_a_stranger_needs_and_nothing_else(hub_folder):
    names = {file.relative_to(hub_folder).as_posix() for file in list_files(hub_folder)}
    assert names >= {
        *(
            "README.md",
            "LICENSE",
            "CITATION.cff",
            "run.json",
            "training_config.yaml",
            "config.json",
            "model.safetensors",
        ),
        *("modeling_geomae.py", "preprocessor_config.json", "image_to_coordinates.py", "populated_places.csv"),
        *("metrics/im2gps.json", "metrics/beside.json", "pictures/error_cdf_1.png"),
    }
    assert "pictures/prediction_map_1_1.png" not in names, "where photos of one's own were taken is not shown unasked"
    assert any(name.startswith("pictures/calibration") for name in names)
    assert {Path(name).suffix for name in names} <= {
        "",
        ".md",
        ".cff",
        ".json",
        ".yaml",
        ".safetensors",
        ".py",
        ".csv",
        ".png",
    }
    assert not [name for name in names if "of_another" in name or "checkpoint" in name or "optimizer" in name]


def test_no_secret_path_or_name_of_a_person_is_in_any_file(hub_folder):
    for file in list_files(hub_folder):
        content = file.read_bytes()
        assert not [secret for secret in SECRETS if secret.encode() in content], file.name


def test_card_has_every_number_with_n_and_interval(run, hub_folder):
    results = numbers_of(hub_folder)
    metrics = json.loads((run / "im2gps" / "metrics.json").read_text())
    found = {(r.metric_config, r.metric_type): r for r in results if r.metric_args["num_photos"] == 40}
    mean = next(r for (_, key), r in found.items() if key == "mean_km" and r.metric_value == metrics["mean_km"])
    assert mean.metric_args == {"num_photos": 40, "interval_95": metrics["intervals_95"]["mean_km"]}
    values = [r.metric_value for r in results]
    for row in (metrics, metrics["decodings"]["argmax"]):
        assert {row["mean_km"], row["median_km"], row["geoscore"], *row["accuracy_within_km"].values()} <= set(values)
    assert any("argmax" in config for config, _ in found)
    assert metrics["posterior"]["nll"] in values
    assert metrics["by"]["scene"]["urban"]["mean_km"] in values


def test_card_speaks_of_dual_use_of_data_and_of_bias(hub_folder):
    text = (hub_folder / "README.md").read_text()
    for word in ("stalking", "military", "CC BY 4.0", "YFCC100M", "AutoModelForImageClassification", "@mastersthesis"):
        assert word in text
    bias = text[text.index("## Bias") : text.index("## Training data")]
    assert "By continent" in bias
    assert "| continent | photos |" in bias
    assert "<b>" not in text.partition("\n---\n")[2].replace("\\<b\\>", "")
    assert EVIL_ID not in text


@CHECKS_CARDS_HERE
def test_card_passes_the_hubs_own_checks(hub_folder, hub):
    card = ModelCard.load(hub_folder / "README.md")
    card.validate()
    name, again = model_index_to_eval_results(card.data.to_dict()["model-index"])
    assert name == "a <b>run</b>"
    assert len(again) == len(card.data.eval_results) > 20
    assert card.data.datasets == ["owner/photos"]


def test_unevaluated_pretraining_says_that_nothing_was_measured(small_run, tmp_path):
    build_hub_folder(small_run, tmp_path / "hub", include_photos=True)
    text = (tmp_path / "hub" / "README.md").read_text()
    assert "Nothing was measured" in text
    assert "model-index" not in text
    assert "AutoModelForPreTraining" in text
    last = (small_run / "pictures" / "reconstruction_step_000010.png").read_bytes()
    assert (tmp_path / "hub" / "pictures" / "reconstruction.png").read_bytes() == last
    assert "GeoNames" not in text, "a pretraining names no places"


def test_photos_are_shown_only_where_that_is_asked_for_or_they_show_nobody(small_run, tmp_path):
    build_hub_folder(small_run, tmp_path / "hub")
    assert not (tmp_path / "hub" / "pictures").exists()
    stand_in = shutil.copytree(small_run, tmp_path / "stand_in", ignore=shutil.ignore_patterns("hub"))
    (stand_in / "run.json").write_text(json.dumps({"config": {"data_dirs": ["outputs/earth/data"]}, "command": "x"}))
    build_hub_folder(stand_in, tmp_path / "earth")
    assert (tmp_path / "earth" / "pictures" / "reconstruction.png").is_file()


def test_links_and_what_is_no_picture_are_not_followed(small_run, tmp_path):
    run = shutil.copytree(small_run, tmp_path / "run", ignore=shutil.ignore_patterns("hub"))
    (tmp_path / "secret.png").write_bytes((run / "pictures" / "reconstruction_step_000010.png").read_bytes())
    (run / "pictures" / "reconstruction_step_000020.png").symlink_to(tmp_path / "secret.png")
    (run / "pictures" / "reconstruction_step_000030.png").write_text("hf_SECRET")
    build_hub_folder(run, tmp_path / "hub", include_photos=True)
    last = (run / "pictures" / "reconstruction_step_000010.png").read_bytes()
    assert (tmp_path / "hub" / "pictures" / "reconstruction.png").read_bytes() == last
    assert len(list((tmp_path / "hub" / "pictures").iterdir())) == 1


def test_edited_folder_is_not_built_over_and_can_be_uploaded_as_it_is(small_run, tmp_path, hub, capsys):
    folder = tmp_path / "hub"
    words = [str(small_run), "--output_dir", str(folder)]
    main(words)
    main(words)  # nobody has touched it
    (folder / "README.md").write_text((folder / "README.md").read_text() + "My own words.")
    with pytest.raises(ConfigError, match=r"was edited since it was built \(README.md\).*--as_it_is.*--overwrite"):
        main(words)
    main([*words, "--as_it_is", "--repo_id", "someone/model"])
    assert hub.repositories["someone/model"]["README.md"].endswith(b"My own words.")
    assert not [name for name in hub.repositories["someone/model"] if "built" in name]
    main([*words, "--overwrite"])
    assert "My own words" not in (folder / "README.md").read_text()
    with pytest.raises(ConfigError, match=r"was not built yet: it lacks training_config\.yaml"):
        main([str(small_run), "--output_dir", str(tmp_path / "other"), "--as_it_is"])


def test_numbers_of_other_weights_are_left_out(run, tmp_path, caplog):
    copy = shutil.copytree(run, tmp_path / "run", ignore=shutil.ignore_patterns("hub", "im2gps"))
    for name, digest in (("same", digest_weights(copy)), ("older", "0" * 64)):
        make_evaluation(copy / name, checkpoint="run")
        file = copy / name / "metrics.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | {"weights_sha256": digest}))
    build_hub_folder(copy, tmp_path / "hub")
    assert [file.name for file in (tmp_path / "hub" / "metrics").iterdir()] == ["same.json"]
    assert "judged other weights than those" in caplog.text


def test_numbers_that_are_none_are_null_and_not_in_the_card(run, tmp_path):
    copy = shutil.copytree(run, tmp_path / "run", ignore=shutil.ignore_patterns("hub"))
    file = copy / "im2gps" / "metrics.json"
    metrics = json.loads(file.read_text())
    metrics["posterior"]["nll"] = float("inf")
    file.write_text(json.dumps(metrics))
    build_hub_folder(copy, tmp_path / "hub")
    stored = json.loads((tmp_path / "hub" / "metrics" / "im2gps.json").read_text(), parse_constant=pytest.fail)
    assert stored["posterior"]["nll"] is None
    assert not [each for each in numbers_of(tmp_path / "hub") if each.metric_value != each.metric_value]
    assert ".inf" not in (tmp_path / "hub" / "README.md").read_text()


def test_two_test_sets_of_one_file_name_are_two(hub_folder):
    sets = {(each.dataset_type, each.dataset_name) for each in numbers_of(hub_folder)}
    assert len(sets) == 2
    assert all(kind.startswith("set-") and name.startswith("set.csv (40 photos, ids ") for kind, name in sets)


@pytest.mark.parametrize("damage", ["weights", "config", "command"])
def test_damaged_run_is_told_in_a_sentence(small_run, tmp_path, damage):
    run = shutil.copytree(small_run, tmp_path / "run", ignore=shutil.ignore_patterns("hub"))
    if damage == "command":  # of a record that somebody has edited: it is shown as it is
        record = json.loads((run / "run.json").read_text())
        (run / "run.json").write_text(json.dumps(record | {"command": "python run.py 'open"}))
        build_hub_folder(run, tmp_path / "hub")
        return
    file = run / ("model.safetensors" if damage == "weights" else "config.json")
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(ConfigError, match=r"is no whole safetensors file|config\.json cannot be read as JSON"):
        build_hub_folder(run, tmp_path / "hub")
    assert not (tmp_path / "hub").exists()


@pytest.mark.parametrize(
    ("init_from", "licence", "base"),
    [
        ("facebook/vit-mae-base", "cc-by-nc-4.0", "facebook/vit-mae-base"),
        ("timm/vit_base_patch16_224.mae", "cc-by-nc-4.0", "timm/vit_base_patch16_224.mae"),
        ("somebody/model", "other", "somebody/model"),
        ("weights/of/mine", "other", None),
        (None, "apache-2.0", None),
    ],
)
def test_card_names_what_the_model_starts_from_and_its_licence(small_run, tmp_path, init_from, licence, base):
    run = shutil.copytree(small_run, tmp_path / "run", ignore=shutil.ignore_patterns("hub"))
    (run / "run.json").write_text(json.dumps({"config": {"init_from": init_from}, "command": "x"}))
    build_hub_folder(run, tmp_path / "hub")
    card = ModelCard.load(tmp_path / "hub" / "README.md")
    assert (card.data.license, card.data.base_model) == (licence, base)
    assert ("It starts from" in card.text) == (init_from is not None)
    assert ("forbids commercial use" in card.text) == (licence == "cc-by-nc-4.0")


def test_licence_and_data_of_an_earlier_run_come_along(small_run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, config in (
        ("pretrain", {"init_from": "facebook/vit-mae-base", "data_dirs": ["data/mp16", "mp16_shards"]}),
        ("run", {"init_from": "pretrain"}),
    ):
        run = shutil.copytree(small_run, tmp_path / name, ignore=shutil.ignore_patterns("hub"))
        (run / "run.json").write_text(json.dumps({"config": config, "command": "x"}))
    build_hub_folder(tmp_path / "run", tmp_path / "hub")
    card = ModelCard.load(tmp_path / "hub" / "README.md")
    assert (card.data.license, card.data.base_model) == ("cc-by-nc-4.0", "facebook/vit-mae-base")
    assert "data/mp16: MP-16 (Larson et al., 2017" in card.text
    assert "mp16\\_shards: not stated" in card.text, "a name that only resembles a known one says nothing"


def test_training_configuration_keeps_of_two_keys_the_given_one(hub_folder):
    config = yaml.safe_load((hub_folder / "training_config.yaml").read_text())
    assert config["base_learning_rate"] == 2e-3
    assert "learning_rate" not in config
    assert config["output_dir"] == "run"


@pytest.mark.parametrize("name", ["model.safetensors", "run.json", "trainer_state.json", "config.json"])
def test_unfinished_run_is_refused_with_what_it_lacks(run, tmp_path, name):
    for file in ("model.safetensors", "run.json", "trainer_state.json", "config.json"):
        if file != name:
            shutil.copy(run / file, tmp_path)
    with pytest.raises(SourceError, match=rf"is no finished run, it lacks {name}"):
        build_hub_folder(tmp_path, tmp_path / "hub")
    assert not (tmp_path / "hub").exists()


def test_folder_of_somebody_else_is_not_replaced(run, tmp_path):
    (tmp_path / "thesis.docx").write_text("precious")
    with pytest.raises(ConfigError, match="holds something else"):
        build_hub_folder(run, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.docx"]


def test_dry_run_lists_the_files_and_leaves_nothing(small_run, capsys, monkeypatch, tmp_path):
    before = {path: path.stat().st_mtime_ns for path in small_run.rglob("*")}
    monkeypatch.chdir(tmp_path)
    main([str(small_run), "--dry_run", "--repo_id", "someone/model"])
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1].endswith("would be uploaded to someone/model. Nothing was written: that was a dry run.")
    listed = {line.split()[2]: (line.split()[0], line.split()[1]) for line in lines if len(line.split()) == 3}
    weights = hashlib.sha256((small_run / "model.safetensors").read_bytes()).hexdigest()
    assert listed["model.safetensors"] == (f"{(small_run / 'model.safetensors').stat().st_size:,}", weights)
    assert {path: path.stat().st_mtime_ns for path in small_run.rglob("*")} == before
    assert not list(tmp_path.iterdir())
    build_hub_folder(small_run, tmp_path / "hub", repo_id="someone/model")
    assert set(listed) == {file.relative_to(tmp_path / "hub").as_posix() for file in list_files(tmp_path / "hub")}


def test_without_a_repository_the_folder_is_built_and_the_next_command_is_said(small_run, tmp_path, capsys):
    main([str(small_run), "--output_dir", str(tmp_path / "hub")])
    out = capsys.readouterr().out
    assert "Nothing was uploaded. To upload it: python -m geomae.publish" in out
    assert "--repo_id OWNER/NAME" in out
    assert (tmp_path / "hub" / "README.md").is_file()


def test_uploaded_repository_equals_the_folder_byte_for_byte_in_one_commit(small_run, hub, capsys):
    main([str(small_run), "--repo_id", "someone/model", "--private"])
    files = {
        file.relative_to(small_run / "hub").as_posix(): file.read_bytes() for file in list_files(small_run / "hub")
    }
    stored = dict(hub.repositories["someone/model"])
    stored.pop(".gitattributes")
    assert stored == files
    assert len(hub.commits) == 1
    assert hub.asked[0][1].get("visibility", hub.asked[0][1].get("private")) in ("private", True)
    assert f"uploaded to {constants.ENDPOINT}/someone/model" in capsys.readouterr().out
    assert 'from_pretrained("someone/model", trust_remote_code=True)' in (small_run / "hub" / "README.md").read_text()


@CHECKS_CARDS_HERE  # releases that do not send small files again
def test_repeated_upload_sends_no_content_again_and_removes_stale_pictures(hub_folder, hub, tmp_path):
    folder = shutil.copytree(hub_folder, tmp_path / "hub")
    upload_hub_folder(folder, "someone/model", repeat="again")
    hub.put.clear(), hub.commits.clear()
    hub.repositories["someone/model"] |= {"pictures/old.png": b"old", "notes.md": b"mine"}
    upload_hub_folder(folder, "someone/model", repeat="again")
    assert not hub.put
    assert "file" not in [key for commit in hub.commits for key in commit]
    assert "pictures/old.png" not in hub.repositories["someone/model"]
    assert hub.repositories["someone/model"]["notes.md"] == b"mine"


@pytest.mark.parametrize("how", ["500", "disconnect"])
@pytest.mark.parametrize("where", ["/api/repos/create", "/preupload/", "/lfs/", "/commit/"])
def test_broken_server_leaves_the_folder_whole_and_the_command_to_repeat(hub_folder, hub, where, how):
    hub.breaks_at, hub.how = where, how
    with pytest.raises(PublishError, match=r"is complete and nothing is half-written. To repeat: try this"):
        upload_hub_folder(hub_folder, "someone/model", repeat="try this")
    assert set(hub.repositories.get("someone/model", {})) <= {".gitattributes"}


def test_nobody_logged_in_is_refused_before_anything_is_built(run, tmp_path, monkeypatch):
    monkeypatch.delenv("HF_TOKEN", raising=False)
    with pytest.raises(ConfigError, match="no token to upload with: log in with `hf auth login`"):
        main([str(run), "--repo_id", "someone/model", "--output_dir", str(tmp_path / "hub")])
    assert not (tmp_path / "hub").exists()


@pytest.mark.parametrize("repo_id", ["no_owner", "some one/model", "a/b/c"])
def test_bad_repository_is_refused(run, repo_id, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_of_the_test")
    with pytest.raises(ConfigError, match=f"repo_id {repo_id}"):
        main([str(run), "--repo_id", repo_id])


def test_dry_run_refuses_a_name_that_the_hub_would_not_take(run):
    with pytest.raises(ConfigError, match="repo_id no_owner has no owner"):
        main([str(run), "--repo_id", "no_owner", "--dry_run"])


def test_private_upload_to_a_public_repository_is_refused(hub_folder, hub):
    upload_hub_folder(hub_folder, "someone/model", repeat="again")
    hub.commits.clear()
    with pytest.raises(ConfigError, match=r"everybody sees it, whatever --private says\. Nothing was uploaded"):
        upload_hub_folder(hub_folder, "someone/model", repeat="again", private=True)
    assert not hub.commits
