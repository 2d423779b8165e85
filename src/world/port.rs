//! A port for processes that do not run yet.

use std::io;
use std::net::{TcpListener, TcpStream};

/// A port of the loopback interface at which one of this machine's processes may listen, and which
/// the system gives to nobody that asks for any port, while this value lives.
#[derive(Debug)]
pub struct Port {
    number: u16,
    /// A connection at the port keeps it; a listener would keep it from all.
    _held: [TcpStream; 2],
}

impl Port {
    /// One that nobody has.
    pub fn reserve() -> io::Result<Self> {
        let listener = TcpListener::bind(("127.0.0.1", 0))?;
        let address = listener.local_addr()?;
        let here = TcpStream::connect(address)?;
        let (there, _) = listener.accept()?;
        Ok(Self {
            number: address.port(),
            _held: [here, there],
        })
    }

    pub fn number(&self) -> u16 {
        self.number
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_process_may_listen_at_a_reserved_port() -> io::Result<()> {
        let port = Port::reserve()?;
        assert_ne!(Port::reserve()?.number(), port.number());
        let listener = TcpListener::bind(("127.0.0.1", port.number()))?;
        assert!(TcpListener::bind(("127.0.0.1", port.number())).is_err());
        TcpStream::connect(listener.local_addr()?)?;
        listener.accept()?;
        Ok(())
    }

    /// There are about 28,000 to give, and half of them are given first.
    #[cfg(target_os = "linux")]
    #[test]
    fn nobody_else_is_given_a_reserved_port() -> io::Result<()> {
        let held: Vec<Port> = (0..20)
            .map(|_| Port::reserve())
            .collect::<io::Result<_>>()?;
        for _ in 0..30_000 {
            let given = TcpListener::bind(("127.0.0.1", 0))?.local_addr()?.port();
            assert!(held.iter().all(|port| port.number() != given), "{given}");
        }
        Ok(())
    }
}
