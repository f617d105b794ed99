"""A run on disk: its files, its summary and verdict, and who may write to its folder."""
