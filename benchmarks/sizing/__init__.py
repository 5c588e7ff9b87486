"""Parts of `benchmarks/model_sizes.py`: the models, the simulated step, the measured one and the page."""
