"""Everything that puts something on disk safely: whole files, locks, manifests, result files that survive a kill."""
