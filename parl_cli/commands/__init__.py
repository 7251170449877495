"""The sub-commands of `parl`, one file each."""
