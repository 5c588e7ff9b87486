"""Parts of `benchmarks/input_pipeline.py`: the photos, the pipelines, the clock and the tables."""
