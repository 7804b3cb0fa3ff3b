"""The command line: `wantrain`, one file for each of its commands."""
