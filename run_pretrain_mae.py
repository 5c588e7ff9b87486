"""Pretrain GeoMAE: photos, with coordinates or without -> a checkpoint folder.

    accelerate launch run_pretrain_mae.py configs/pretrain/demo.yaml
    accelerate launch --config_file configs/accelerate/eight_a100.yaml run_pretrain_mae.py \
        configs/pretrain/mae_vit_base_mp16.yaml --num_train_epochs 100

Any key of the YAML file can be overridden as `--key value`; `--help` lists them all. A stopped run continues with
`--resume_from_checkpoint true`, exactly where its last checkpoint was saved.
"""

from collections.abc import Sequence

from transformers import set_seed

from geomae.training import (
    DataArguments,
    GeoMAEArguments,
    GeoMAETrainingArguments,
    MAETrainer,
    PretrainArguments,
    ReconstructionPanels,
    RunRecord,
    StepProfiler,
    build_collators,
    build_stream,
    claim_output_dir,
    empty_output_dir,
    given_keys,
    inherit_encoder,
    load_validation,
    parse_config,
    pick_panel,
    refuse_training_photos,
    refuse_what_the_model_refuses,
    release_output_dir,
    run_to_its_end,
)
from modeling import GeoMAEConfig, GeoMAEForPreTraining, load_encoder_weights


def main(argv: Sequence[str]) -> None:
    """Run what a YAML file and its overrides describe."""
    data, start, architecture, args = parse_config(
        (DataArguments, PretrainArguments, GeoMAEArguments, GeoMAETrainingArguments), argv
    )
    claim_output_dir(
        args.output_dir,
        resume_from=args.resume_from_checkpoint,
        overwrite=args.overwrite_output_dir,
        init_from=start.init_from,
        is_main_process=args.process_index == 0,
    )

    # data
    with refuse_what_the_model_refuses():
        architecture = inherit_encoder(architecture, start.init_from, given=given_keys(argv))
        config = GeoMAEConfig(**vars(architecture))
    stream = build_stream(data, args, labelled=False)
    validation = load_validation(data, labelled=False)
    refuse_training_photos(stream, validation)
    training_collator, validation_collator = build_collators(
        data, image_size=config.image_size, labelled=False, num_patches=config.num_patches
    )

    # model
    set_seed(args.seed)
    with refuse_what_the_model_refuses():
        model = GeoMAEForPreTraining(config)
        report = load_encoder_weights(model, start.init_from) if start.init_from else "Fresh weights."

    # trainer
    trainer = MAETrainer(
        model,
        args,
        train_dataset=stream,
        train_collator=training_collator,
        eval_dataset=validation,
        eval_collator=validation_collator,
    )
    trainer.accelerator.print(report)
    trainer.add_callback(RunRecord(trainer, {**vars(data), **vars(start), **vars(architecture), **args.to_dict()}))
    panel = pick_panel(validation, validation_collator, num_photos=args.num_reconstructions)
    if panel is not None:
        trainer.add_callback(ReconstructionPanels(trainer, panel, every_steps=args.reconstruction_steps))
    if args.profile:
        trainer.add_callback(StepProfiler(trainer))

    # run
    empty_output_dir(args.output_dir, resume_from=args.resume_from_checkpoint, is_main_process=args.process_index == 0)
    trainer.train(resume_from_checkpoint=args.resume_from_checkpoint)
    trainer.save_model()
    trainer.save_state()
    if args.push_to_hub:
        trainer.push_to_hub()
    release_output_dir(args.output_dir)


if __name__ == "__main__":
    run_to_its_end(main)
