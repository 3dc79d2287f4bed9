"""Low-rank adapters beside weights: attached, found again, and merged."""
