"""Measurements of jobrunner, each beside the limit it is measured against: see docs/speed.md."""
