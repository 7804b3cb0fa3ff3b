"""The command line of the training core: `python wantrain.py train RUN_FOLDER`.

It loads the pack under a fixed name, so that it works from a checkout, from custom_nodes and with an embedded Python
that ignores the working directory.
"""

import importlib.util
import sys
from pathlib import Path


def load_pack() -> None:
    """Make this folder importable as `wan_train`, without running the node entry, which needs ComfyUI."""
    root = Path(__file__).resolve().parent
    sys.path[:] = [path for path in sys.path if Path(path or ".").resolve() != root]  # our nodes/, core/ shadow others
    spec = importlib.util.spec_from_file_location(
        "wan_train", root / "__init__.py", submodule_search_locations=[str(root)]
    )
    assert spec is not None
    sys.modules["wan_train"] = importlib.util.module_from_spec(spec)


if __name__ == "__main__":
    load_pack()
    from wan_train.core.cli.main import main
    from wan_train.core.processes import leave

    leave(main())
