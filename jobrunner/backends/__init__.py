"""The outside systems that do a monitor job's work, one folder each, behind `base.Backend`."""
