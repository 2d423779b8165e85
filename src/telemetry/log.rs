//! Output of events and spans: lines on stderr and, with `--trace`, a Chrome trace.
//!
//! On a terminal a line holds the message only and is printed above the progress bars; elsewhere it
//! begins with the time.

use std::fmt;
use std::fs::File;
use std::io::{self, BufWriter, IsTerminal, Write};
use std::path::PathBuf;

use tracing::{Event, Level, Subscriber};
use tracing_chrome::{ChromeLayerBuilder, FlushGuard};
use tracing_subscriber::filter::{EnvFilter, LevelFilter, Targets};
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::time::{FormatTime, SystemTime};
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::layer::{Layer, SubscriberExt};
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::util::SubscriberInitExt;

use super::progress::BARS;
use crate::error::{Result, usage};

/// Options from the command line.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// Number of `-v` flags.
    pub verbose: u8,
    pub quiet: bool,
    pub trace: Option<PathBuf>,
    /// Of this process among those that train together: each line begins with it, and all but the
    /// first print warnings only.
    pub rank: Option<usize>,
}

/// Finishes the trace file when dropped.
pub struct Guard {
    _trace: Option<FlushGuard>,
}

/// Initialises this process's log, once; `RUST_LOG` overrides `-v` and `-q`.
pub fn init(options: &Options) -> Result<Guard> {
    let is_other = options.rank.is_some_and(|rank| rank > 0);
    let level = match (options.quiet, options.verbose) {
        (true, _) => LevelFilter::WARN,
        (false, 0) if is_other => LevelFilter::WARN,
        (false, 0) => LevelFilter::INFO,
        (false, 1) => LevelFilter::DEBUG,
        (false, _) => LevelFilter::TRACE,
    };
    let filter = match std::env::var("RUST_LOG") {
        Ok(text) if !text.is_empty() => EnvFilter::try_new(&text)
            .map_err(|e| usage(format!("RUST_LOG={text}: {e}"), "as in RUST_LOG=rdpm=debug"))?,
        _ => EnvFilter::new(format!("warn,rdpm={level}")),
    };
    let lines = tracing_subscriber::fmt::layer()
        .event_format(Line {
            terminal: io::stderr().is_terminal(),
            rank: options.rank.filter(|_| is_other),
        })
        .with_ansi(false)
        // Internal errors would be printed to the stderr that has just failed, and the panic would
        // end the run. A terminal may close before the run does.
        .log_internal_errors(false)
        .with_writer(|| Stderr)
        .with_filter(filter);
    let (trace, guard) = match &options.trace {
        None => (None, None),
        Some(path) => {
            let path = &match options.rank.filter(|_| is_other) {
                None => path.clone(),
                Some(rank) => {
                    let mut name = path.clone().into_os_string();
                    name.push(format!(".rank{rank}"));
                    name.into()
                }
            };
            let file = File::create(path).map_err(|e| {
                usage(
                    format!("--trace {}: {e}", path.display()),
                    "choose a file that can be written",
                )
            })?;
            let (layer, guard) = ChromeLayerBuilder::new()
                .writer(TraceFile {
                    file: BufWriter::new(file),
                    path: path.clone(),
                    failed: false,
                })
                .include_args(true)
                .build();
            let ours = Targets::new().with_target("rdpm", LevelFilter::TRACE);
            (Some(layer.with_filter(ours)), Some(guard))
        }
    };
    // A second initialisation in one process (tests) keeps the first.
    let _ = tracing_subscriber::registry()
        .with(lines)
        .with(trace)
        .try_init();
    Ok(Guard { _trace: guard })
}

/// The trace file; a full disk ends the trace but not the run.
struct TraceFile {
    file: BufWriter<File>,
    path: PathBuf,
    failed: bool,
}

impl TraceFile {
    fn or_end(&mut self, result: io::Result<()>) {
        if let Err(e) = result {
            self.failed = true;
            tracing::warn!("the trace {} ends early: {e}", self.path.display());
        }
    }
}

impl Write for TraceFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if !self.failed {
            let result = self.file.write_all(bytes);
            self.or_end(result);
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        if !self.failed {
            let result = self.file.flush();
            self.or_end(result);
        }
        Ok(())
    }
}

/// Writes to stderr above the progress bars.
struct Stderr;

impl Write for Stderr {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        BARS.suspend(|| io::stderr().write(bytes))
    }

    fn flush(&mut self) -> io::Result<()> {
        io::stderr().flush()
    }
}

/// The format of a line. Spans appear in the trace only.
struct Line {
    terminal: bool,
    rank: Option<usize>,
}

impl<S, N> FormatEvent<S, N> for Line
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(
        &self,
        context: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        let level = *event.metadata().level();
        if self.terminal {
            match level {
                Level::ERROR => writer.write_str("error: ")?,
                Level::WARN => writer.write_str("warning: ")?,
                Level::INFO => {}
                _ => write!(writer, "{}: ", event.metadata().target())?,
            }
        } else {
            SystemTime.format_time(&mut writer)?;
            write!(writer, " {level} ")?;
        }
        if let Some(rank) = self.rank {
            write!(writer, "rank {rank}: ")?;
        }
        context.format_fields(writer.by_ref(), event)?;
        writeln!(writer)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::{Arc, Mutex};

    #[derive(Clone, Default)]
    struct Buffer(Arc<Mutex<Vec<u8>>>);

    impl Write for Buffer {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend(bytes);
            Ok(bytes.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn logged(terminal: bool, rank: Option<usize>) -> String {
        let buffer = Buffer::default();
        let writer = buffer.clone();
        let layer = tracing_subscriber::fmt::layer()
            .event_format(Line { terminal, rank })
            .with_ansi(false)
            .with_writer(move || writer.clone());
        tracing::subscriber::with_default(tracing_subscriber::registry().with(layer), || {
            let _span = tracing::info_span!("step").entered();
            tracing::info!(loss = 0.5, "step 1/2");
            tracing::warn!("slow");
        });
        String::from_utf8(buffer.0.lock().unwrap().clone()).unwrap()
    }

    #[test]
    fn a_line_is_plain_on_a_terminal_and_dated_elsewhere() {
        assert_eq!(logged(true, None), "step 1/2 loss=0.5\nwarning: slow\n");
        assert!(logged(true, Some(3)).ends_with("warning: rank 3: slow\n"));
        let dated = logged(false, None);
        let first = dated.lines().next().unwrap();
        assert!(first.starts_with("20") && first.contains('T'), "{first}");
        assert!(first.ends_with(" INFO step 1/2 loss=0.5"), "{first}");
    }

    #[test]
    fn a_trace_file_that_cannot_be_written_is_named() {
        let options = Options {
            trace: Some("/no/such/folder/trace.json".into()),
            rank: Some(0),
            ..Options::default()
        };
        let error = init(&options).err().expect("this must be refused");
        assert!(crate::error::report(&error).0.contains("/no/such/folder"));
    }
}
