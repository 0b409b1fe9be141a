"""One script a claim; each prints what it measured beside a reference of the same run."""
