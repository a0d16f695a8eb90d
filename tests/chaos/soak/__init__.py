"""A soak: tens of thousands of short jobs through one process, and what that still holds afterwards."""
