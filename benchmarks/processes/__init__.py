"""Parts of `benchmarks/process_scaling.py`: processes that train together, and the arithmetic of more of them."""
