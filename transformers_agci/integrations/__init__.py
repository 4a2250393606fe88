"""The position probe as a task of other people's evaluation programs: their models and runs, our rows and figures."""
