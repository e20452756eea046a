"""Reports: what runs logged, as one self-contained HTML page."""
