"""What a run leaves to look at: metrics, tables, pictures, curves."""
