"""What a run leaves behind: snapshots and decisions, as a file or while it happens."""
