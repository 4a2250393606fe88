"""Asking a model questions about images: load it, batch the questions, answer them, keep what is finished.

`run.run_questions` is the one way in; `questions.Question` says what to ask and `results.ResultFile` how answers are
kept. Nothing here knows a benchmark or a probe.
"""
