"""What `run.py` and the tests stand on: miniature models, drawn clips, workflow files, a ComfyUI to talk to."""
