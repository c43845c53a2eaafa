"""What a file holds, and what training would refuse."""
