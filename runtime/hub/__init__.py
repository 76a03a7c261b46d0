"""Names of models on the hub: what they mean, and how their files get onto this disk."""
