//! What ranks send each other: frames of one byte (what it is), the length as u64 and so many
//! bytes. Everything is little-endian.

use std::io::{self, Read, Write};

/// Bytes before a frame's contents.
const HEADER: usize = 9;

/// Bytes of numbers that are converted at a time.
const PIECE: usize = 64 << 10;

/// The longest frame that is read where the other side is not known yet, or sends only a word.
pub const SHORT: u64 = 64 << 10;

/// The longest frame of all but numbers.
pub const LONG: u64 = 1 << 30;

/// What a frame is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Kind {
    /// Who has connected.
    Hello = 1,
    /// The answer to it: come in.
    Welcome,
    /// Or not, and why.
    Refused,
    /// All have come: their hosts.
    Start,
    Sum,
    Copy,
    Gather,
    Broadcast,
    Agree,
    /// A sign of life: the steps done.
    Beat,
    /// A rank has failed, and why.
    Failed,
    /// The sender has done its work.
    Bye,
}

impl Kind {
    const ALL: [Kind; 12] = [
        Kind::Hello,
        Kind::Welcome,
        Kind::Refused,
        Kind::Start,
        Kind::Sum,
        Kind::Copy,
        Kind::Gather,
        Kind::Broadcast,
        Kind::Agree,
        Kind::Beat,
        Kind::Failed,
        Kind::Bye,
    ];
}

fn bad(text: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, text)
}

/// Sends a frame.
pub fn send(to: &mut impl Write, kind: Kind, bytes: &[u8]) -> io::Result<()> {
    let mut frame = header(kind, bytes.len()).to_vec();
    frame.extend_from_slice(bytes);
    to.write_all(&frame)
}

/// The next frame, of at most `most` bytes.
pub fn receive(from: &mut impl Read, most: u64) -> io::Result<(Kind, Vec<u8>)> {
    let (kind, len) = read_header(from)?;
    if len > most {
        return Err(bad(format!("{kind:?} of {len} bytes, at most {most}")));
    }
    // Grows as bytes come, whatever the length says.
    let mut bytes = Vec::new();
    from.take(len).read_to_end(&mut bytes)?;
    match bytes.len() as u64 == len {
        true => Ok((kind, bytes)),
        false => Err(io::ErrorKind::UnexpectedEof.into()),
    }
}

/// The next frame, which must be of this kind.
pub fn expect(from: &mut impl Read, kind: Kind, most: u64) -> io::Result<Vec<u8>> {
    let (found, bytes) = receive(from, most)?;
    check(found, kind)?;
    Ok(bytes)
}

/// Errors: a frame is of another kind.
pub fn check(found: Kind, expected: Kind) -> io::Result<()> {
    match found == expected {
        true => Ok(()),
        false => Err(bad(format!("it is at {found:?}, expected {expected:?}"))),
    }
}

fn header(kind: Kind, len: usize) -> [u8; HEADER] {
    let mut header = [kind as u8; HEADER];
    header[1..].copy_from_slice(&(len as u64).to_le_bytes());
    header
}

fn read_header(from: &mut impl Read) -> io::Result<(Kind, u64)> {
    let mut header = [0; HEADER];
    from.read_exact(&mut header)?;
    let [first, len @ ..] = header;
    let kind = Kind::ALL.into_iter().find(|kind| *kind as u8 == first);
    let kind = kind.ok_or_else(|| bad(format!("no frame begins with byte {first}")))?;
    Ok((kind, u64::from_le_bytes(len)))
}

/// A number that ranks add.
pub trait Number: Copy {
    const BYTES: usize;
    fn put(self, bytes: &mut Vec<u8>);
    fn get(bytes: &[u8]) -> Self;
    fn plus(self, other: Self) -> Self;
}

macro_rules! numbers {
    ($($number:ty),*) => {$(
        impl Number for $number {
            const BYTES: usize = size_of::<$number>();

            fn put(self, bytes: &mut Vec<u8>) {
                bytes.extend_from_slice(&self.to_le_bytes());
            }

            fn get(bytes: &[u8]) -> Self {
                let mut own = [0; size_of::<$number>()];
                own.copy_from_slice(bytes);
                Self::from_le_bytes(own)
            }

            fn plus(self, other: Self) -> Self {
                self + other
            }
        }
    )*};
}

numbers!(f32, u64);

/// Sends a frame of numbers.
pub fn send_numbers<T: Number>(to: &mut impl Write, kind: Kind, values: &[T]) -> io::Result<()> {
    let mut bytes = header(kind, values.len() * T::BYTES).to_vec();
    let mut pieces = values.chunks(PIECE / T::BYTES);
    // Without numbers there is still a frame.
    loop {
        for value in pieces.next().unwrap_or_default() {
            value.put(&mut bytes);
        }
        if bytes.is_empty() {
            return Ok(());
        }
        to.write_all(&bytes)?;
        bytes.clear();
    }
}

/// Receives as many numbers as there are `values` and gives each to `take` with its place.
pub fn receive_numbers<T: Number>(
    from: &mut impl Read,
    kind: Kind,
    values: &mut [T],
    take: impl Fn(&mut T, T),
) -> io::Result<()> {
    let (found, len) = read_header(from)?;
    check(found, kind)?;
    let expected = (values.len() * T::BYTES) as u64;
    if len != expected {
        return Err(bad(format!("{kind:?} of {len} bytes, expected {expected}")));
    }
    let mut bytes = vec![0; PIECE.min(values.len() * T::BYTES)];
    for values in values.chunks_mut(PIECE / T::BYTES) {
        let bytes = &mut bytes[..values.len() * T::BYTES];
        from.read_exact(bytes)?;
        for (value, bytes) in values.iter_mut().zip(bytes.chunks_exact(T::BYTES)) {
            take(value, T::get(bytes));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_arrive_as_they_were_sent() -> io::Result<()> {
        // More than two pieces, and none.
        for count in [0, 1, 3 * PIECE / 4 + 5] {
            let sent: Vec<f32> = (0..count).map(|i| (i as f32).sin()).collect();
            let mut bytes = Vec::new();
            send_numbers(&mut bytes, Kind::Copy, &sent)?;
            assert_eq!(bytes.len(), HEADER + 4 * count);
            let mut found = vec![f32::NAN; count];
            receive_numbers(&mut &bytes[..], Kind::Copy, &mut found, |to, x| *to = x)?;
            assert_eq!(found, sent);
        }
        Ok(())
    }

    #[test]
    fn what_is_no_frame_is_refused() -> io::Result<()> {
        let mut frame = Vec::new();
        send(&mut frame, Kind::Beat, b"word")?;
        assert_eq!(receive(&mut &frame[..], 4)?, (Kind::Beat, b"word".to_vec()));
        let refused = |bytes: &[u8], most| receive(&mut &bytes[..], most).unwrap_err().kind();
        assert_eq!(refused(&frame, 3), io::ErrorKind::InvalidData);
        assert_eq!(refused(&frame[..7], 4), io::ErrorKind::UnexpectedEof);
        assert_eq!(refused(&frame[..11], 4), io::ErrorKind::UnexpectedEof);
        assert_eq!(refused(b"GET / HTTP/1.1", 4), io::ErrorKind::InvalidData);
        // A length that is never sent takes no memory.
        let mut long = frame.clone();
        long[1..HEADER].copy_from_slice(&LONG.to_le_bytes());
        assert_eq!(refused(&long, LONG), io::ErrorKind::UnexpectedEof);
        let text = expect(&mut &frame[..], Kind::Agree, 4)
            .unwrap_err()
            .to_string();
        assert_eq!(text, "it is at Beat, expected Agree");
        let other = receive_numbers(&mut &frame[..], Kind::Beat, &mut [0f32; 2], |_, _| {});
        assert!(
            other
                .unwrap_err()
                .to_string()
                .contains("4 bytes, expected 8")
        );
        Ok(())
    }
}
