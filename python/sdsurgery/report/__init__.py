"""Text and pictures for people: reports and tables, progress, heat maps."""
