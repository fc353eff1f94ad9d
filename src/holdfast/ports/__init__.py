"""What the engine needs from outside: a store for the log, agents to run, a clock. Protocols and values only."""
