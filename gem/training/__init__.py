"""What the examples share: the flags, the log of a training, and running a trainer that is a command of its own."""
