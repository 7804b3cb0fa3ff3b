"""The commands of `wantrain`, one file each: `add_arguments(parser)` and `run(options) -> exit code`."""
