//! Whoever connects to rank 0 and has not said yet who it is. All are listened to at the same time,
//! so that one that says nothing, or word by word, holds up nobody.

use std::io::{self, Read};
use std::net::{TcpListener, TcpStream};
use std::time::{Duration, Instant};

use super::wire::{self, SHORT};

/// How long a visitor may take to say who it is.
const INTRODUCTION: Duration = Duration::from_secs(5);

/// The most that are listened to; beyond it, the first to have come goes.
const MOST: usize = 256;

/// Visitors in the order in which they came.
#[derive(Debug, Default)]
pub struct Visitors(Vec<Visitor>);

#[derive(Debug)]
struct Visitor {
    stream: TcpStream,
    said: Vec<u8>,
    since: Instant,
}

/// What came of a visitor: its first frame, or why there is none.
pub type Introduced = (TcpStream, io::Result<(wire::Kind, Vec<u8>)>);

impl Visitors {
    /// Lets in whoever waits at `listener`, which must not block. Errors: those of the listener.
    pub fn accept(&mut self, listener: &TcpListener) -> io::Result<()> {
        // Whoever comes without end must not keep others from being heard.
        for _ in 0..MOST {
            let stream = match listener.accept() {
                Ok((stream, _)) => stream,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                // It has gone again.
                Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => continue,
                Err(error) => return Err(error),
            };
            stream.set_nonblocking(true)?;
            if self.0.len() == MOST {
                self.0.remove(0);
            }
            self.0.push(Visitor {
                stream,
                said: Vec::new(),
                since: Instant::now(),
            });
        }
        Ok(())
    }

    /// Takes out those that have said who they are, or failed to. Does not wait.
    pub fn introduced(&mut self) -> Vec<Introduced> {
        let mut done = Vec::new();
        for mut visitor in std::mem::take(&mut self.0) {
            match visitor.listen() {
                Ok(None) => self.0.push(visitor),
                Ok(Some(frame)) => done.push((visitor.stream, Ok(frame))),
                Err(error) => done.push((visitor.stream, Err(error))),
            }
        }
        done
    }
}

impl Visitor {
    /// Its first frame, once that has come.
    fn listen(&mut self) -> io::Result<Option<(wire::Kind, Vec<u8>)>> {
        let mut piece = [0; 4096];
        loop {
            let ended = match self.stream.read(&mut piece) {
                Ok(0) => true,
                Ok(n) => {
                    self.said.extend_from_slice(&piece[..n]);
                    false
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(error),
            };
            match wire::receive(&mut &*self.said, SHORT) {
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof && !ended => {}
                frame => return frame.map(Some),
            }
        }
        match self.since.elapsed() > INTRODUCTION {
            true => Err(io::ErrorKind::TimedOut.into()),
            false => Ok(None),
        }
    }
}
