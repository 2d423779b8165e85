//! The terminal that progress bars are drawn on. Failed writes are ignored, because a terminal may
//! close before its run is saved; the bars of the library would end the run instead.

use std::io;

use console::Term;
use indicatif::{ProgressDrawTarget, TermLike};

/// Maximum redraw rate of a bar, in Hz.
const RATE: u8 = 20;

/// Where bars are drawn: on stderr if it is a terminal, else nowhere.
pub(super) fn target() -> ProgressDrawTarget {
    let term = Term::buffered_stderr();
    match term.is_term() {
        true => ProgressDrawTarget::term_like_with_hz(Box::new(Terminal(term)), RATE),
        false => ProgressDrawTarget::hidden(),
    }
}

/// A terminal that ignores errors.
#[derive(Debug)]
struct Terminal(Term);

/// Ignores an error.
fn done(_: io::Result<()>) -> io::Result<()> {
    Ok(())
}

impl TermLike for Terminal {
    fn width(&self) -> u16 {
        self.0.size().1
    }

    fn height(&self) -> u16 {
        self.0.size().0
    }

    fn move_cursor_up(&self, n: usize) -> io::Result<()> {
        done(self.0.move_cursor_up(n))
    }

    fn move_cursor_down(&self, n: usize) -> io::Result<()> {
        done(self.0.move_cursor_down(n))
    }

    fn move_cursor_right(&self, n: usize) -> io::Result<()> {
        done(self.0.move_cursor_right(n))
    }

    fn move_cursor_left(&self, n: usize) -> io::Result<()> {
        done(self.0.move_cursor_left(n))
    }

    fn write_line(&self, s: &str) -> io::Result<()> {
        done(self.0.write_line(s))
    }

    fn write_str(&self, s: &str) -> io::Result<()> {
        done(self.0.write_str(s))
    }

    fn clear_line(&self) -> io::Result<()> {
        done(self.0.clear_line())
    }

    fn flush(&self) -> io::Result<()> {
        done(self.0.flush())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;

    #[test]
    fn a_terminal_that_takes_nothing_stops_nobody() -> io::Result<()> {
        let full = File::options().write(true).open("/dev/full")?;
        let term = Term::read_write_pair(File::open("/dev/null")?, full);
        assert!(term.write_str("bar").is_err());
        let terminal = Terminal(term);
        terminal.write_str("bar")?;
        terminal.write_line("bar")?;
        terminal.clear_line()?;
        terminal.move_cursor_up(1)?;
        terminal.flush()
    }
}
