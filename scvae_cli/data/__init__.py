"""From files and AnnData objects to raw counts, and back."""
