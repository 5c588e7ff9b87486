"""Judge a geolocator, or anybody's predictions, on a test set: predictions.parquet -> metrics.json -> a table.

    python run_evaluate_geo.py configs/evaluate/demo.yaml
    python run_evaluate_geo.py --predictions predictions.csv --test_set im2gps3k \
        --train_coordinates mp16_coordinates_100k.csv --output_dir outputs/judged

The first runs a checkpoint on photos, also under `accelerate launch`. The second needs neither a model nor photos.
"""

import sys
from collections.abc import Sequence

from geomae.errors import GeoMAEError
from geomae.evaluation import (
    EvaluationArguments,
    describe_run,
    describe_test_set,
    judge_and_write,
    read_baseline_coordinates,
    read_predictions,
    read_test_set,
    read_training_ids,
    shown_path,
)
from geomae.training.config_file import parse_config


def main(argv: Sequence[str]) -> None:
    """Read, predict where a checkpoint is given, judge, compare, write, print."""
    (arguments,) = parse_config((EvaluationArguments,), argv)
    num_absent = weights_sha256 = None
    training_ids = read_training_ids(arguments.train_coordinates) if arguments.train_coordinates else None
    training_deg = read_baseline_coordinates(arguments)

    if arguments.checkpoint:
        # Only this branch needs torch: a file of predictions is judged without it.
        from geomae.checkpoints import digest_weights
        from geomae.compilation import refuse_missing_compiler
        from geomae.data import PhotoCollator
        from geomae.evaluation.photos_to_judge import load_photos_to_judge
        from geomae.evaluation.posterior_head import override_decoding
        from geomae.evaluation.predict import is_main_process, predict_coordinates
        from geomae.training import refuse_what_the_model_refuses
        from modeling import load_geolocator

        photos, test_set, num_absent = load_photos_to_judge(arguments)
        with refuse_what_the_model_refuses():
            model = load_geolocator(arguments.checkpoint)
        override_decoding(model, **arguments.decoding_options)
        if arguments.torch_compile:
            refuse_missing_compiler()
            model.compile()
        predictions = predict_coordinates(
            model,
            photos,
            PhotoCollator(model.config.image_size, augment=False, ten_crop=arguments.ten_crop),
            decodings=arguments.decodings,
            batch_size=arguments.per_device_eval_batch_size,
            num_workers=arguments.dataloader_num_workers,
            bf16=arguments.bf16,
            max_damaged_share=arguments.max_damaged_share,
        )
        if not is_main_process():
            return
        weights_sha256 = digest_weights(arguments.checkpoint)
    else:
        test_set = read_test_set(arguments.test_set, split=arguments.split, swap_lat_lon=arguments.swap_lat_lon)
        predictions = read_predictions(arguments.predictions)

    described = {
        "weights_sha256": weights_sha256,
        "num_absent": num_absent,
        "test_set": describe_test_set(test_set, training_ids),
    }
    described |= describe_run(sys.argv[:1] + list(argv))
    label = shown_path(arguments.checkpoint or arguments.predictions)
    judge_and_write(arguments, predictions, test_set, training_deg, described, label=label)


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except GeoMAEError as problem:
        sys.exit(f"{type(problem).__name__}: {problem}")
