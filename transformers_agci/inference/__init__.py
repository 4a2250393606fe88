"""Asking a model questions about images: load it, batch the questions, answer them, keep what is finished.

`answering.answer_questions` answers a `questions.QuestionSet`; `runner.run` is the one runner below it, which every
experiment gives its blocks and its work to. Nothing here knows a benchmark or an experiment.
"""
