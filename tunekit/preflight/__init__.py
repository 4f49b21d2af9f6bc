"""tunekit.check: one preflight check a file."""
