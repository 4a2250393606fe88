"""What a benchmark declares, and what all of them share: reading and joining files, intervals."""
