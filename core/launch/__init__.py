"""Starting the trainer in a process of its own, following it, and running a recipe from end to end."""
