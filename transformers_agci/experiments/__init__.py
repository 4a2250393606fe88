"""What is measured: the position probe, what a model looks at, benchmarks, comparisons of methods, ruler and study."""
