"""Check what a file contains, and whether a training would refuse the file."""
