"""However photos are dealt to steps and processes, the same photos give the same training."""

from pathlib import Path

import pytest
import torch
from launching import run_twice_beside_itself
from many_processes import KINDS, train_and_save
from packed_photos import pack
from safetensors.torch import load_file

# float32 adds in another order; Adam turns a gradient that is nothing but rounding into a step of up to 1e-3
CLOSE = {"rtol": 1e-4, "atol": 1e-4}


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pack(tmp_path_factory.mktemp("photos"), train=48)


@pytest.mark.parametrize("kind", KINDS)
def test_accumulated_steps_are_those_of_the_large_batch(photos: Path, tmp_path: Path, kind: str) -> None:
    large, weights = train_and_save(kind, photos, tmp_path / "large", per_device_train_batch_size=8)
    small, others = train_and_save(kind, photos, tmp_path / "small", gradient_accumulation_steps=2)
    assert len(large) == 8
    assert len(set(large)) == 8
    assert small == pytest.approx(large, rel=1e-5)
    torch.testing.assert_close(others, weights, **CLOSE)


def test_summed_loss_is_the_sum_of_one_batch_and_the_mean_over_accumulated_ones(photos: Path, tmp_path: Path) -> None:
    options = {"loss_reduction": "sum", "max_steps": 1, "max_grad_norm": 0}
    large, _ = train_and_save("pretrain", photos, tmp_path / "large", **options, per_device_train_batch_size=8)
    small, _ = train_and_save("pretrain", photos, tmp_path / "small", **options, gradient_accumulation_steps=2)
    assert small == pytest.approx([value / 2 for value in large], rel=1e-5)


def test_two_processes_train_as_one_with_the_doubled_batch(photos: Path, tmp_path: Path) -> None:
    """Each of two processes reads one lane; one process with two workers reads the same lanes in turn."""
    code = f"import sys\nsys.argv[1:] = [{str(photos)!r}, {str(tmp_path / 'two')!r}]\n"
    code += "import runpy\nrunpy.run_module('many_processes', run_name='__main__')\n"
    run_twice_beside_itself(code, tmp_path, num_threads=1)
    for kind in KINDS:
        one, weights = train_and_save(
            kind, photos, tmp_path / "one" / kind, gradient_accumulation_steps=2, dataloader_num_workers=2
        )
        two = torch.load(tmp_path / "two" / kind / "logged.pt")
        assert len(set(one)) == 8
        assert two == pytest.approx(one, rel=1e-5), kind
        torch.testing.assert_close(load_file(tmp_path / "two" / kind / "model.safetensors"), dict(weights), **CLOSE)


EVALUATED_FIRST = """
import os, sys
from pathlib import Path

from safetensors.torch import save_file

from geomae.data.collate import PhotoCollator
from geomae.data.loading import load_photos
from many_processes import build_trainer

photos, folder = Path(sys.argv[1]), Path(sys.argv[2])
trainer = build_trainer("finetune", photos, folder)
trainer.eval_dataset, trainer.eval_collator = load_photos(photos, "validation"), PhotoCollator(16, augment=False)
trainer.evaluate()
trainer.train()
save_file(trainer.model.state_dict(), folder / f"rank_{os.environ['RANK']}.safetensors")
"""


def test_an_evaluation_before_training_leaves_the_processes_one_model(tmp_path: Path) -> None:
    """accelerate takes a model that it has prepared for evaluations for one that has DDP around it already."""
    photos = pack(tmp_path / "photos", train=48, validation=8)
    code = f"import sys\nsys.argv[1:] = [{str(photos)!r}, {str(tmp_path)!r}]\n" + EVALUATED_FIRST
    run_twice_beside_itself(code, tmp_path, num_threads=1)
    first, second = (load_file(tmp_path / f"rank_{rank}.safetensors") for rank in (0, 1))
    torch.testing.assert_close(first, second, rtol=0, atol=0)
