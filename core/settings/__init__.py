"""Every option, declared once: its type, default, range, help, widget, and its names in other trainers."""
