"""What benchmarks of long runs and of many rows share: photos, a watch over processes, lines through points."""
