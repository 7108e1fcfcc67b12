"""One thin module a subcommand: parse, call the spine, hand the result to the sink."""
