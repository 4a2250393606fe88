"""Benchmarks asked of a model: rows to questions, questions to result files, result files to a score."""
