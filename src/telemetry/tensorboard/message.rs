//! The few of TensorBoard's protocol-buffer messages that an event file needs, as bytes
//! (tensorboard/compat/proto/{event,summary,tensor}.proto; the numbers of fields are theirs).

/// A message in the making: fields in the order in which they are added.
#[derive(Debug, Default)]
pub(super) struct Message(Vec<u8>);

/// How a field's value lies after its number.
const VARINT: u64 = 0;
const FIXED64: u64 = 1;
const BYTES: u64 = 2;
const FIXED32: u64 = 5;

impl Message {
    fn varint(mut self, mut value: u64) -> Self {
        while value >= 0x80 {
            self.0.push(value as u8 | 0x80);
            value >>= 7;
        }
        self.0.push(value as u8);
        self
    }

    fn key(self, field: u64, kind: u64) -> Self {
        self.varint(field << 3 | kind)
    }

    pub fn number(self, field: u64, value: u64) -> Self {
        self.key(field, VARINT).varint(value)
    }

    pub fn double(self, field: u64, value: f64) -> Self {
        let mut message = self.key(field, FIXED64);
        message.0.extend_from_slice(&value.to_le_bytes());
        message
    }

    pub fn float(self, field: u64, value: f32) -> Self {
        let mut message = self.key(field, FIXED32);
        message.0.extend_from_slice(&value.to_le_bytes());
        message
    }

    pub fn bytes(self, field: u64, value: &[u8]) -> Self {
        let mut message = self.key(field, BYTES).varint(value.len() as u64);
        message.0.extend_from_slice(value);
        message
    }

    pub fn message(self, field: u64, value: &Message) -> Self {
        self.bytes(field, &value.0)
    }

    pub fn finish(self) -> Vec<u8> {
        self.0
    }
}

/// An event at `step`, without what it is of.
pub(super) fn event(seconds: f64, step: u64) -> Message {
    Message::default().double(1, seconds).number(2, step)
}

/// The first event of a file: its format.
pub(super) fn version(seconds: f64) -> Message {
    event(seconds, 0).bytes(3, b"brain.Event:2")
}

/// Forget what earlier files say of `step` and later ones.
pub(super) fn restart(seconds: f64, step: u64) -> Message {
    const START: u64 = 1;
    event(seconds, step).message(7, &Message::default().number(1, START))
}

/// A curve's value.
pub(super) fn scalar(tag: &str, value: f32) -> Message {
    Message::default().bytes(1, tag.as_bytes()).float(2, value)
}

/// A picture in RGB: its size, and a PNG.
pub(super) fn picture(tag: &str, (width, height): (u32, u32), png: &[u8]) -> Message {
    const RGB: u64 = 3;
    let image = Message::default()
        .number(1, height.into())
        .number(2, width.into())
        .number(3, RGB)
        .bytes(4, png);
    Message::default()
        .bytes(1, tag.as_bytes())
        .message(4, &image)
}

/// A text in Markdown: a tensor of strings that TensorBoard's plugin for texts takes.
pub(super) fn text(tag: &str, text: &str) -> Message {
    const STRING: u64 = 7;
    let plugin = Message::default().bytes(1, b"text");
    let one = Message::default().message(2, &Message::default().number(1, 1));
    let tensor = Message::default()
        .number(1, STRING)
        .message(2, &one)
        .bytes(8, text.as_bytes());
    Message::default()
        .bytes(1, tag.as_bytes())
        .message(8, &tensor)
        .message(9, &Message::default().message(1, &plugin))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_lie_as_the_format_says() {
        // The example of the format's own description: field 1 is 150, field 2 is "testing".
        let message = Message::default().number(1, 150).bytes(2, b"testing");
        let expected = *b"\x08\x96\x01\x12\x07testing";
        assert_eq!(message.finish(), expected);
        let loss = event(1.5, 300).message(5, &Message::default().message(1, &scalar("l", 0.5)));
        let expected = [
            &b"\x09\0\0\0\0\0\0\xf8\x3f"[..], // 1.5
            b"\x10\xac\x02",                  // 300
            b"\x2a\x0a\x0a\x08",              // a summary of one value of 8 bytes
            b"\x0a\x01l\x15\0\0\0\x3f",
        ];
        assert_eq!(loss.finish(), expected.concat());
    }
}
