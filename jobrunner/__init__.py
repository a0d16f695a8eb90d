"""jobrunner runs and watches long jobs, each of them a database row with a heartbeat."""
