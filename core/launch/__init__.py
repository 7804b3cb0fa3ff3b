"""Starting the trainer in a process of its own and following it."""
