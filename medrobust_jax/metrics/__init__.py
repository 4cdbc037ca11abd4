"""Quality, its intervals, and curves over eps; NumPy, on gathered arrays."""
