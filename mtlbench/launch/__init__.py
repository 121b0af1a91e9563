"""Starting runs: one, or a sweep of many."""
