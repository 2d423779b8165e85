//! `rdpm completions SHELL`: the script that lets a shell complete this command line.

use clap::CommandFactory;
use clap_complete::Shell;

use super::{Cli, Context};
use crate::error::Result;

/// Print the completion script of a shell
///
/// For bash: rdpm completions bash > ~/.local/share/bash-completion/completions/rdpm
#[derive(Debug, clap::Args)]
pub struct Args {
    /// bash, zsh, fish, elvish or powershell
    #[arg(value_name = "SHELL", hide_possible_values = true)]
    shell: Shell,
}

pub fn run(args: &Args, _context: &Context) -> Result<()> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "rdpm", &mut script);
    super::print(&String::from_utf8_lossy(&script))
}
