"""The model test (PROTOCOL 12): several runners, one database, one world outside, in any order."""
