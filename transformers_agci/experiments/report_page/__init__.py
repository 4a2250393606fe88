"""`agci report`: results, and what was measured inside the model, on one page that opens the items behind a cell."""
