"""What a run needs around the method: its folder, its checkpoints, its progress display, its guards."""
