"""docs/results.md, section by section."""
