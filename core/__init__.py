"""The training core. It knows nothing of ComfyUI: the node pack, the command line and the tests all stand on it."""
