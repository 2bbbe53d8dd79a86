"""One thin file per subcommand: parse, call the engine, print."""
