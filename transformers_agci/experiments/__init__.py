"""What is measured about position: the position probe, and what the vision encoder sees."""
