"""Parts of `benchmarks/train_step.py`: the models that train, the clock, the tables."""
