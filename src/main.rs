//! Parses the command line, runs one subcommand, sets the exit code.

use std::process::ExitCode;

use clap::Parser;
use rdpm::{cli, error};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    let command_line = cli::Cli::parse();
    match cli::run(command_line) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let (text, code) = error::report(&error);
            eprintln!("{text}");
            ExitCode::from(code)
        }
    }
}
