"""Parts of `benchmarks/trainer_loop.py`."""
