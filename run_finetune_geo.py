"""Fine-tune a geolocator: photos with coordinates (and a GeoMAE checkpoint) -> a checkpoint folder.

    accelerate launch run_finetune_geo.py configs/finetune/demo.yaml
    accelerate launch --config_file configs/accelerate/eight_a100.yaml run_finetune_geo.py \
        configs/finetune/mae_vit_base_mp16.yaml --init_from outputs/pretrain_mae_vit_base_mp16

Any key of the YAML file can be overridden as `--key value`; `--help` lists them all. A stopped run continues with
`--resume_from_checkpoint true`, exactly where its last checkpoint was saved.
"""

from collections.abc import Sequence

from transformers import set_seed

from geomae.training import (
    DataArguments,
    FinetuneArguments,
    GeoBaselineArguments,
    GeolocationTrainer,
    GeoMAEArguments,
    GeoMAETrainingArguments,
    PredictionMaps,
    RunRecord,
    StepProfiler,
    Variants,
    build_collators,
    build_stream,
    claim_output_dir,
    empty_output_dir,
    give_geocells,
    given_keys,
    inherit_encoder,
    load_validation,
    parse_config,
    read_head_geocells,
    refuse_training_photos,
    refuse_what_the_model_refuses,
    release_output_dir,
    run_to_its_end,
)
from modeling import (
    GeoBaselineConfig,
    GeoBaselineForGeolocation,
    GeoMAEConfig,
    GeoMAEForGeolocation,
    load_encoder_weights,
)

ARCHITECTURES = Variants("model_type", {"geomae": GeoMAEArguments, "geobaseline": GeoBaselineArguments})
MODELS = {
    "geomae": (GeoMAEConfig, GeoMAEForGeolocation),
    "geobaseline": (GeoBaselineConfig, GeoBaselineForGeolocation),
}


def main(argv: Sequence[str]) -> None:
    """Run what a YAML file and its overrides describe."""
    data, start, architecture, args = parse_config(
        (DataArguments, FinetuneArguments, ARCHITECTURES, GeoMAETrainingArguments), argv
    )
    claim_output_dir(
        args.output_dir,
        resume_from=args.resume_from_checkpoint,
        overwrite=args.overwrite_output_dir,
        init_from=start.init_from,
        is_main_process=args.process_index == 0,
    )

    # data
    config_class, model_class = MODELS[start.model_type]
    with refuse_what_the_model_refuses():
        architecture = inherit_encoder(architecture, start.init_from, given=given_keys(argv))
        architecture, geocells = read_head_geocells(architecture, start.geocells)
        config = config_class(**vars(architecture))
    stream = build_stream(data, args, labelled=True, num_scenes=config.num_scenes)
    validation = load_validation(data)
    refuse_training_photos(stream, validation)
    training_collator, validation_collator = build_collators(
        data, image_size=config.image_size, labelled=True, num_scenes=config.num_scenes
    )

    # model
    set_seed(args.seed)
    with refuse_what_the_model_refuses():
        model = model_class(config)
        if geocells is not None:
            give_geocells(model, geocells)
        report = load_encoder_weights(model, start.init_from) if start.init_from else "Fresh weights."
        if args.gradient_checkpointing:
            model.gradient_checkpointing_enable()  # what cannot recompute says so before an earlier run is removed

    # trainer
    trainer = GeolocationTrainer(
        model,
        args,
        train_dataset=stream,
        train_collator=training_collator,
        eval_dataset=validation,
        eval_collator=validation_collator,
    )
    trainer.accelerator.print(report)
    trainer.add_callback(RunRecord(trainer, {**vars(data), **vars(start), **vars(architecture), **args.to_dict()}))
    if args.prediction_maps:
        trainer.add_callback(PredictionMaps(trainer))
    if args.profile:
        trainer.add_callback(StepProfiler(trainer))

    # run: with load_best_model_at_end, the best model is judged once more and lands at the top of output_dir
    empty_output_dir(args.output_dir, resume_from=args.resume_from_checkpoint, is_main_process=args.process_index == 0)
    trainer.train(resume_from_checkpoint=args.resume_from_checkpoint)
    if validation is not None:
        trainer.save_metrics("eval", trainer.evaluate())
    trainer.save_model()
    trainer.save_state()
    if args.push_to_hub:
        trainer.push_to_hub()
    release_output_dir(args.output_dir)


if __name__ == "__main__":
    run_to_its_end(main)
