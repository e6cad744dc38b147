"""Pages and pictures made of what was recorded."""
