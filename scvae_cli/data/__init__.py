"""Reading raw counts from files and AnnData objects, and writing results to them."""
