"""One file per `agci` command: `add_arguments(parser)` and `run(args) -> exit code`. No torch at import."""
