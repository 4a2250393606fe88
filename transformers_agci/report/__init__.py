"""What results look like: one look for every map, one for every table."""
