//! `rdpm serve`: a page and a JSON API for a trained model.

use std::env::VarError;
use std::io::ErrorKind;
use std::net::TcpListener;
use std::path::PathBuf;

use super::Context;
use crate::error::{Result, hinted, usage};
use crate::interrupt::Interrupt;
use crate::sample::Pretrained;
use crate::serve::{self, Settings, Token};

/// Serve a page and a JSON API that sample and reconstruct images
///
/// Prints the page's address once it answers. SIGTERM or Ctrl-C ends it after the batch that is
/// running; what waits is refused. The same class and seed give the images of `rdpm sample`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// A run folder of train-gen, a bundle, a folder of `export --hf`, hf://owner/repo[@revision],
    /// or `builtin`, the built-in model [default: $RDPM_MODEL, else the newest finished run under
    /// runs/, else builtin]
    #[arg(long, value_name = "RUN|BUNDLE")]
    model: Option<PathBuf>,
    /// Address to listen on; any but a loopback address needs --token
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1")]
    host: String,
    /// Port to listen on; 0 takes a free one
    #[arg(long, value_name = "N", default_value_t = 8000)]
    port: u16,
    /// Secret that clients must send, as a bearer token [default: $RDPM_TOKEN, else none]
    #[arg(long, value_name = "TOKEN")]
    token: Option<Token>,
    /// Most images of one request
    #[arg(long, value_name = "N", default_value_t = 16, value_parser = clap::value_parser!(u32).range(1..=1024))]
    max_num: u32,
    /// Most images of all waiting requests
    #[arg(long, value_name = "N", default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..))]
    max_queue: u32,
    /// Images that are drawn together [default: the model's sample.batch_size]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    batch_size: Option<u32>,
}

impl Args {
    fn token(&self) -> Result<Option<Token>> {
        match &self.token {
            Some(token) => Ok(Some(token.clone())),
            None => from_environment(std::env::var("RDPM_TOKEN")),
        }
    }

    /// Errors: an address that others reach, without a token.
    fn listen(&self, token: Option<&Token>) -> Result<TcpListener> {
        let listener = self.bind()?;
        // The address and not the name, which may lead anywhere.
        let address = listener.local_addr()?.ip().to_canonical();
        match token.is_none() && !address.is_loopback() {
            true => Err(usage(
                format!(
                    "--host {}: others could reach it without a token",
                    self.host
                ),
                "give a --token that clients must send, or listen on 127.0.0.1",
            )),
            false => Ok(listener),
        }
    }

    fn bind(&self) -> Result<TcpListener> {
        let host = self.host.trim_start_matches('[').trim_end_matches(']');
        TcpListener::bind((host, self.port)).map_err(|e| {
            hinted(
                format!("cannot listen on {}, port {}: {e}", self.host, self.port),
                match e.kind() {
                    ErrorKind::AddrInUse => "another program does: choose another --port",
                    ErrorKind::PermissionDenied => {
                        "ports below 1024 are for root: choose another --port"
                    }
                    _ => "--host takes an address of this machine, as 127.0.0.1 or 0.0.0.0",
                },
            )
        })
    }
}

/// The token in the variable; none if it is empty or not set.
///
/// Errors: it is no token.
fn from_environment(found: std::result::Result<String, VarError>) -> Result<Option<Token>> {
    let token = match found {
        Err(VarError::NotPresent) => return Ok(None),
        Ok(text) if text.is_empty() => return Ok(None),
        // What is not UTF-8 is not ASCII either.
        Err(VarError::NotUnicode(text)) => text.to_string_lossy().parse(),
        Ok(text) => text.parse(),
    };
    let token = token.map_err(|e: String| usage(format!("$RDPM_TOKEN: {e}"), "or leave it unset"));
    token.map(Some)
}

pub fn run(args: &Args, context: &Context) -> Result<()> {
    let token = args.token()?;
    if args.max_num > args.max_queue {
        return Err(usage(
            format!(
                "--max-num {} is above --max-queue {}: such a request could never wait",
                args.max_num, args.max_queue
            ),
            "raise --max-queue, or lower --max-num",
        ));
    }
    let interrupt = Interrupt::listen()?;
    // A port that is taken is found before the model is loaded.
    let listener = args.listen(token.as_ref())?;
    let model = Pretrained::open(args.model.as_deref(), &context.device()?)?;
    let batch = args
        .batch_size
        .map_or(model.config.sample.batch_size, |n| n as usize);
    let settings = Settings {
        token,
        num: args.max_num as usize,
        queue: args.max_queue as usize,
        batch,
    };
    let address = format!("http://{}/\n", listener.local_addr()?);
    let ready = || super::print(&address);
    serve::run(&model, listener, settings, &interrupt, ready)?;
    tracing::info!("stopped");
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::ffi::OsString;
    use std::os::unix::ffi::OsStringExt;

    use clap::Parser;

    use super::*;
    use crate::error::report;

    #[derive(clap::Parser)]
    struct Line {
        #[command(flatten)]
        args: Args,
    }

    #[test]
    fn the_address_decides_whether_a_token_is_needed_and_not_its_name() {
        let token: Token = "0123456789abcdef".parse().expect("a token");
        let listen = |host, token| {
            let line = Line::parse_from(["rdpm", "--port", "0", "--host", host]);
            line.args.listen(token).map(drop)
        };
        for host in ["127.0.0.1", "127.1", "localhost"] {
            listen(host, None).expect(host);
        }
        for host in ["0.0.0.0", "0"] {
            let (text, code) = report(&listen(host, None).expect_err(host));
            assert!(text.contains("without a token") && code == 2, "{text}");
            listen(host, Some(&token)).expect(host);
        }
    }

    #[test]
    fn a_variable_that_is_set_is_a_token_or_an_error() {
        let none = [Err(VarError::NotPresent), Ok(String::new())];
        for found in none {
            assert!(from_environment(found).expect("no token").is_none());
        }
        let token = from_environment(Ok("0123456789abcdef".into()));
        assert!(token.expect("a token").is_some());
        let damaged = OsString::from_vec(vec![0xff; 17]);
        for wrong in [Ok("short".into()), Err(VarError::NotUnicode(damaged))] {
            let (text, code) = report(&from_environment(wrong).expect_err("no token"));
            assert!(
                text.contains("$RDPM_TOKEN: a token has") && code == 2,
                "{text}"
            );
        }
    }
}
