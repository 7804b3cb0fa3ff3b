"""A run's diary, shown elsewhere: TensorBoard, Weights & Biases, a webhook; and a run or a LoRA, pushed to Hugging Face.

A process of its own reads the diary and never touches the run. A name that a person chose leaves the machine only by what
that person turned on.
"""
