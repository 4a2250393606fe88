"""What lmms-eval finds by its plugin variable."""
