//! The command line: one file a subcommand, its arguments and its run().
