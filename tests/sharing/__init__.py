"""The table of what combines: method x quantisation x sharding x checkpointing x objective, each cell run on two CPU ranks."""
