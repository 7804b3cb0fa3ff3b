"""`python -m tools.nano COMMAND ...`, from the pack's folder. What each command takes: COMMAND --help."""

import importlib
import sys
from pathlib import Path

COMMANDS = {
    "text": "text",
    "vae": "train_vae",
    "dit": "train_dit",
    "dataset": "dataset",
    "evaluate": "evaluate",
    "teach": "teach",
    "bench": "bench",
    "methods": "compare",
    "distil": "distil",
    "few_steps": "few_steps",
    "held_out": "held_out",
    "tables": "tables",
}


def main() -> None:
    """Load the pack under its own name, as the command line of the core does, and run the command."""
    if len(sys.argv) < 2 or sys.argv[1] not in COMMANDS:
        sys.exit(f"Usage: python -m tools.nano {{{','.join(COMMANDS)}}} ...")
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent))
    from wantrain import load_pack

    load_pack()
    importlib.import_module(f"wan_train.tools.nano.{COMMANDS[sys.argv[1]]}").main(sys.argv[2:])


if __name__ == "__main__":
    main()
