//! Parses the command line, runs one subcommand, sets the exit code.

use std::io::{ErrorKind, Write};
use std::process::ExitCode;

use clap::Parser;
use rdpm::{cli, error};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

// From the allocator's own library, because its crate does not re-export it. SAFETY: the signature
// is that of include/mimalloc.h; any option may be set to any number at any time.
unsafe extern "C" {
    safe fn mi_option_set(option: std::ffi::c_int, value: std::ffi::c_long);
}

/// mimalloc's option `purge_delay` (include/mimalloc.h; the same number in versions 2 and 3).
const PURGE_DELAY: std::ffi::c_int = 15;

fn main() -> ExitCode {
    // A training step allocates again what the previous one freed. Memory returned to the system in
    // between would have to be cleared again, which costs a tenth of a small step's time.
    mi_option_set(PURGE_DELAY, -1);
    let command_line = match cli::Cli::try_parse() {
        Ok(command_line) => command_line,
        Err(said) => return say(&said),
    };
    match cli::run(command_line) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let (text, code) = error::report(&error);
            if !text.is_empty() {
                // The terminal may have closed; then there is nowhere to print the error.
                let _ = writeln!(std::io::stderr(), "{text}");
            }
            ExitCode::from(code)
        }
    }
}

/// Prints the help, the version, or what is wrong with the command line.
fn say(said: &clap::Error) -> ExitCode {
    let printed = said.print().and_then(|()| std::io::stdout().flush());
    match printed {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => {
            let text = format!("error: cannot write to stdout: {error}");
            let _ = writeln!(std::io::stderr(), "{text}");
            ExitCode::FAILURE
        }
        _ => ExitCode::from(said.exit_code() as u8),
    }
}
