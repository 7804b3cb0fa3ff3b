"""LoRA adapters: set-up through peft, the file formats, merging."""
