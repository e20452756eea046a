"""Self-contained HTML pages: one file, no request to anywhere, nothing of a model's text taken for markup."""
