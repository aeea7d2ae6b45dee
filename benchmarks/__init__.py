"""Speed, memory and quality of this package, side by side with others."""
