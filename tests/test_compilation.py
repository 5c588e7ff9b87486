"""torch.compile: one graph of training and one of evaluation, whatever the sizes of batches, and the same numbers."""

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate.utils import is_compiled_module
from launching import run_twice_beside_itself
from many_processes import KINDS, train_and_save
from packed_photos import TINY, geolocation_trainer, mae_trainer, pack, training_arguments

from geomae.compilation import compiled_if_full
from geomae.data.collate import PhotoCollator
from geomae.data.loading import load_photos
from geomae.evaluation.predict import predict_coordinates
from geomae.training import ReconstructionPanels, pick_panel
from modeling import GeoBaselineConfig, GeoBaselineForGeolocation, GeoMAEConfig, GeoMAEForGeolocation

HEADS: list[dict[str, Any]] = [
    {"head_type": "tanh"},
    {"head_type": "sphere"},
    {"head_type": "geocells", "num_geocells": [5, 30]},
    {"head_type": "hybrid", "num_geocells": [30]},
    {"head_type": "vmf_mixture", "num_mixture_components": 4},
]


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pack(tmp_path_factory.mktemp("photos"), train=40, validation=13)


@pytest.fixture(autouse=True)
def fresh_compiler() -> Iterator[None]:
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def num_graphs() -> int:
    """Graphs that torch has compiled since the last reset: every recompilation adds one."""
    return torch._dynamo.utils.counters["stats"]["unique_graphs"]


def test_stance_is_eager_for_every_batch_that_is_not_full() -> None:
    doubled = torch.compile(lambda x: x * 2, backend="eager", dynamic=False)
    before = num_graphs()
    for size in (4, 3, 4, 1, 4, 2):
        with compiled_if_full(size, 4):
            assert doubled(torch.ones(size)).tolist() == [2.0] * size
    assert num_graphs() - before == 1


def build_resnet() -> GeoBaselineForGeolocation:
    """Its photos are turned to channels_last within the graph."""
    return GeoBaselineForGeolocation(GeoBaselineConfig(backbone="resnet10t", image_size=32, head_hidden_sizes=[8]))


def build_geolocator(head: dict[str, Any]) -> GeoMAEForGeolocation:
    return GeoMAEForGeolocation(GeoMAEConfig(**TINY | head))


@pytest.mark.parametrize(
    "build",
    [build_resnet, *[partial(build_geolocator, head) for head in HEADS]],
    ids=["resnet", *[head["head_type"] for head in HEADS]],
)
def test_compiled_geolocator_has_the_loss_gradients_and_answers_of_the_eager_one(build: Callable[[], Any]) -> None:
    model = build().train()
    size = model.config.image_size
    photos, truth = torch.randint(0, 256, (4, 3, size, size), dtype=torch.uint8), torch.rand(4, 2) * 50
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True, dynamic=False)
    losses, gradients = [], []
    for run in (model, compiled):
        model.zero_grad()
        loss = run(photos, truth).loss
        loss.backward()
        losses.append(loss.item())
        gradients.append({n: p.grad for n, p in model.named_parameters() if p.grad is not None})
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        rounding = 1e-4 * gradient.abs().max().item() + 1e-7
        torch.testing.assert_close(gradients[1][name], gradient, rtol=1e-3, atol=rounding)
    model.eval()  # behind both passes, since they move the statistics of batch norm
    with torch.inference_mode():
        answers = [run(photos).coordinates_deg for run in (model, compiled)]
    torch.testing.assert_close(answers[1], answers[0], rtol=0, atol=1e-2)


@pytest.mark.parametrize(
    ("build", "architecture"),
    [(mae_trainer, {}), *[(geolocation_trainer, head) for head in HEADS]],
    ids=["pretraining", *[head["head_type"] for head in HEADS]],
)
def test_training_and_evaluation_have_one_graph_each(
    photos: Path, tmp_path: Path, build: Callable[..., Any], architecture: dict[str, Any]
) -> None:
    """Over the border of an epoch (5 steps), in four evaluations, whose last batch has 5 photos of 8."""
    args = training_arguments(
        tmp_path,
        max_steps=8,
        gradient_accumulation_steps=1,
        schedule="cosine",
        warmup_steps=2,
        ema_decay=0.9,
        eval_strategy="steps",
        eval_steps=2,
        torch_compile=True,
        torch_compile_backend="aot_eager",
    )
    trainer = build(photos, args, **architecture)
    graphs: list[int] = []
    step = trainer.training_step

    def counting(*inputs: Any) -> Any:
        loss = step(*inputs)
        graphs.append(num_graphs())
        return loss

    trainer.training_step = counting
    before = num_graphs()
    trainer.train()
    trainer.evaluate()
    assert [count - before for count in graphs] == [1] * 2 + [2] * 6, "the second comes with the first evaluation"
    assert num_graphs() - before == 2


def test_evaluations_before_and_after_training_share_their_graph(photos: Path, tmp_path: Path) -> None:
    args = training_arguments(tmp_path, torch_compile=True, torch_compile_backend="aot_eager")
    trainer = geolocation_trainer(photos, args)
    before, graphs = num_graphs(), []
    for run in (trainer.evaluate, trainer.evaluate, trainer.train, trainer.evaluate):
        run()
        graphs.append(num_graphs() - before)
        assert is_compiled_module(trainer.model_wrapped)
    assert graphs == [1, 1, 2, 2]


def test_graph_of_an_evaluation_in_other_batches_is_of_one_size_too(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And gradients that are accumulated add no graph, nor do reconstructions on the way."""
    compiled_sizes: list[Any] = []

    def note_sizes(graph: Any, inputs: list[Any]) -> Any:
        traced = (node.meta["example_value"] for node in graph.graph.find_nodes(op="placeholder"))
        compiled_sizes.extend(value.shape[0] for value in traced if getattr(value, "dtype", None) == torch.uint8)
        return graph

    torch._dynamo.list_backends()  # loads them, so that one can be replaced
    note_sizes._tags = ()  # type: ignore[attr-defined]  # torch 2.11 looks for them
    monkeypatch.setitem(torch._dynamo.backends.registry._COMPILER_FNS, "eager", note_sizes)
    options: dict[str, Any] = {"eval_strategy": "steps", "eval_steps": 1, "gradient_accumulation_steps": 2}
    options |= {"per_device_eval_batch_size": 4, "torch_compile_backend": "eager"}
    trainer = mae_trainer(photos, training_arguments(tmp_path, **options))
    panel = pick_panel(trainer.eval_dataset, trainer.eval_collator, num_photos=3)
    assert panel is not None
    trainer.add_callback(ReconstructionPanels(trainer, panel, every_steps=2))
    trainer.train()
    assert compiled_sizes == [8, 4]
    assert all(type(size) is int for size in compiled_sizes), "a symbol stands for any size"
    assert len(list((tmp_path / "pictures").iterdir())) == 3


ON_TWO_PROCESSES = """
import os, sys
from pathlib import Path

import torch
from many_processes import train_and_save

torch.distributed._DEFAULT_FIRST_BUCKET_BYTES = 4096  # or all gradients of a tiny model go out together
photos, folder = Path(sys.argv[1]), Path(sys.argv[2])
options = {"torch_compile_backend": "aot_eager", "ddp_bucket_cap_mb": 1}
for kind in ("pretrain", "finetune"):
    torch._dynamo.utils.counters.clear()
    train_and_save(kind, photos, folder / kind, **options)
    counters = torch._dynamo.utils.counters
    (folder / kind / f"rank_{os.environ['RANK']}.txt").write_text(
        f"{counters['stats']['unique_graphs']} {counters['aot_autograd']['total']}"
    )
"""


@pytest.mark.slow
def test_compiled_on_two_processes_trains_as_eager_on_one_with_the_doubled_batch(tmp_path: Path) -> None:
    """One graph, cut where a bucket of gradients is full, so that it is sent while the backward pass goes on."""
    photos = pack(tmp_path / "photos", train=48)
    code = f"import sys\nsys.argv[1:] = [{str(photos)!r}, {str(tmp_path)!r}]\n" + ON_TWO_PROCESSES
    run_twice_beside_itself(code, tmp_path, num_threads=1)
    for kind in KINDS:
        one, _ = train_and_save(
            kind, photos, tmp_path / "one" / kind, gradient_accumulation_steps=2, dataloader_num_workers=2
        )
        assert torch.load(tmp_path / kind / "logged.pt") == pytest.approx(one, rel=1e-5), kind
        for rank in (0, 1):
            num_traced, num_parts = (tmp_path / kind / f"rank_{rank}.txt").read_text().split()
            assert num_traced == "1"
            assert int(num_parts) > 1


@pytest.fixture
def draws_as_eager_does() -> Iterator[None]:
    """Else inductor draws other masks."""
    with torch._inductor.config.patch(fallback_random=True):
        yield


INDUCTOR = pytest.param("inductor", marks=[pytest.mark.slow, pytest.mark.timeout(1800)])


@pytest.mark.usefixtures("draws_as_eager_does")
@pytest.mark.parametrize("backend", ["aot_eager", INDUCTOR])
@pytest.mark.parametrize("build", [mae_trainer, geolocation_trainer])
def test_compiled_run_repeats_the_eager_one_and_leaves_the_same_files(
    photos: Path, tmp_path: Path, build: Callable[..., Any], backend: str
) -> None:
    logs, names = [], []
    for compiled in (False, True):
        torch.manual_seed(0)
        args = training_arguments(
            tmp_path / str(compiled),
            eval_strategy="steps",
            eval_steps=2,
            save_strategy="steps",
            save_steps=4,
            torch_compile=compiled,
            torch_compile_backend=backend if compiled else None,
        )
        trainer = build(photos, args)
        trainer.train()
        history = trainer.state.log_history
        logs.append([value for entry in history for name, value in entry.items() if name in ("loss", "eval_loss")])
        names.append(sorted(trainer.model.state_dict()))
        saved = trainer.model.from_pretrained(tmp_path / str(compiled) / "checkpoint-4")
        for name, tensor in trainer.model.state_dict().items():
            assert torch.equal(saved.state_dict()[name], tensor), name
    assert len(logs[0]) == 6
    assert np.allclose(logs[1], logs[0], rtol=1e-5)
    assert names[0] == names[1]


def test_compiled_run_resumes_an_eager_one(photos: Path, tmp_path: Path) -> None:
    options: dict[str, Any] = {"max_steps": 4, "save_strategy": "steps", "save_steps": 2}
    unbroken = mae_trainer(photos, training_arguments(tmp_path, **options))
    unbroken.train()
    compiled = training_arguments(tmp_path, **options, torch_compile=True, torch_compile_backend="aot_eager")
    resumed = mae_trainer(photos, compiled)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    expected, got = ([e["loss"] for e in t.state.log_history if "loss" in e] for t in (unbroken, resumed))
    assert got == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("ten_crop", [False, True])
def test_prediction_has_one_graph_and_the_same_answers(photos: Path, ten_crop: bool) -> None:
    model = GeoMAEForGeolocation(GeoMAEConfig(**TINY | HEADS[2]))
    test_set = load_photos(photos, "validation")
    collator = PhotoCollator(16, augment=False, ten_crop=ten_crop)
    answers = []
    before = num_graphs()
    for compiles in (False, True):
        if compiles:
            model.compile(backend="aot_eager")
        predictions = predict_coordinates(model, test_set, collator, batch_size=4, device="cpu")
        answers.append((predictions.ids, predictions.coordinates_deg))
    assert answers[0][0] == answers[1][0] == test_set["id"][:]
    assert np.allclose(answers[0][1], answers[1][1], atol=1e-3)
    assert num_graphs() - before == 1


def test_compilation_does_not_turn_tf32_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a GPU transformers would: the head's float32 products would be rounded to 10 bits."""
    switched: list[bool] = []
    monkeypatch.setattr("transformers.training_args.is_torch_tf32_available", lambda: True)
    monkeypatch.setattr("transformers.training_args.enable_tf32", switched.append)
    training_arguments(tmp_path, torch_compile=True, bf16=True)
    assert switched[-1] is False
    training_arguments(tmp_path, torch_compile=True, bf16=True, tf32=True)
    assert switched[-1] is True
