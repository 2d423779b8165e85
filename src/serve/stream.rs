//! From the model's thread to a client: events, and how they become server-sent events.
//!
//! A client that reads slower than the model draws does not fill the memory: beyond
//! [`UNREAD`] bytes that it has not taken, it misses previews. Finished images are never left out.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::task::{Context, Poll, ready};

use axum::body::Bytes;
use axum::http::StatusCode;
use futures_core::Stream;
use image::RgbImage;
use serde_json::{Value, json};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

use super::picture;
use super::refusal::Refusal;

/// Bytes of pixels.
const UNREAD: usize = 4 << 20;

pub enum Event {
    /// Images after step t, with their numbers.
    Images {
        t: usize,
        images: Vec<(u64, RgbImage)>,
    },
    /// All images were sent.
    Done,
    Failed(Refusal),
}

/// What the tokenizer makes of an image.
pub struct Reconstruction {
    /// What it was given: the center, at the model's size.
    pub original: RgbImage,
    /// D(z'_t) for t = 1..T.
    pub steps: Vec<RgbImage>,
    /// Codes by step, row and column.
    pub codes: Vec<Vec<Vec<u32>>>,
    pub psnr: f64,
}

impl Event {
    fn bytes(&self) -> usize {
        match self {
            Event::Images { images, .. } => images.iter().map(|(_, x)| x.as_raw().len()).sum(),
            _ => 0,
        }
    }
}

/// The model's end.
pub struct Outbox {
    events: UnboundedSender<Event>,
    unread: Arc<AtomicUsize>,
}

/// The client's end; if it is dropped, the client has left.
pub struct Inbox {
    events: UnboundedReceiver<Event>,
    unread: Arc<AtomicUsize>,
}

pub fn channel() -> (Outbox, Inbox) {
    let (send, receive) = unbounded_channel();
    let unread = Arc::new(AtomicUsize::new(0));
    let outbox = Outbox {
        events: send,
        unread: unread.clone(),
    };
    let inbox = Inbox {
        events: receive,
        unread,
    };
    (outbox, inbox)
}

impl Outbox {
    /// `needed`: also if the client is slow.
    pub fn show(&self, event: Event, needed: bool) {
        let bytes = event.bytes();
        if needed || self.unread.load(SeqCst) + bytes <= UNREAD {
            self.unread.fetch_add(bytes, SeqCst);
            // Nobody has to read it.
            let _ = self.events.send(event);
        }
    }

    pub fn is_closed(&self) -> bool {
        self.events.is_closed()
    }
}

impl Inbox {
    fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Event> {
        let event = ready!(self.events.poll_recv(cx)).unwrap_or_else(|| Event::Failed(lost()));
        self.unread.fetch_sub(event.bytes(), SeqCst);
        Poll::Ready(event)
    }

    pub async fn next(&mut self) -> Event {
        std::future::poll_fn(|cx| self.poll_next(cx)).await
    }

    #[cfg(test)]
    pub fn try_next(&mut self) -> Option<Event> {
        self.events.try_recv().ok()
    }
}

/// What is told whose request got no answer.
pub fn lost() -> Refusal {
    Refusal::new(
        StatusCode::INTERNAL_SERVER_ERROR,
        "the request was lost",
        "this is a bug in rdpm: please report it",
    )
}

/// The body of an answer in server-sent events: `accepted`, a `preview` a step, then `done` or
/// `error`.
pub struct Events {
    inbox: Inbox,
    steps: usize,
    /// Not yet sent.
    first: Option<String>,
    ended: bool,
}

impl Events {
    pub fn new(inbox: Inbox, steps: usize, accepted: &Value) -> Self {
        Self {
            inbox,
            steps,
            first: Some(line("accepted", &accepted.to_string())),
            ended: false,
        }
    }
}

impl Stream for Events {
    type Item = Result<Bytes, Infallible>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        if let Some(first) = self.first.take() {
            return Poll::Ready(Some(Ok(first.into())));
        }
        if self.ended {
            return Poll::Ready(None);
        }
        let event = ready!(self.inbox.poll_next(cx));
        let (text, last) = match event {
            Event::Images { t, images } => match preview(t, self.steps, &images) {
                Ok(text) => (text, false),
                Err(refusal) => (line("error", &refusal.json()), true),
            },
            Event::Failed(refusal) => (line("error", &refusal.json()), true),
            Event::Done => (line("done", "{}"), true),
        };
        self.ended = last;
        Poll::Ready(Some(Ok(text.into())))
    }
}

fn preview(t: usize, steps: usize, images: &[(u64, RgbImage)]) -> Result<String, Refusal> {
    let each = images.iter().map(|(number, image)| {
        let png = picture::text(image)?;
        Ok(json!({"number": number, "png": png}))
    });
    let images: Vec<Value> = each.collect::<Result<_, Refusal>>()?;
    let data = json!({"t": t, "steps": steps, "images": images});
    Ok(line("preview", &data.to_string()))
}

/// JSON has no line breaks that are not escaped.
fn line(event: &str, data: &str) -> String {
    format!("event: {event}\ndata: {data}\n\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slow_client_misses_previews_and_no_finished_image() {
        let (outbox, mut inbox) = channel();
        let images = |t| Event::Images {
            t,
            images: vec![(0, RgbImage::new(1024, 1024))],
        };
        for t in 1..=5 {
            outbox.show(images(t), t == 5);
        }
        let mut seen = Vec::new();
        while let Some(Event::Images { t, .. }) = inbox.try_next() {
            seen.push(t);
        }
        // Two images of 3 MiB are more than 4 MiB.
        assert_eq!(seen, [1, 5]);
    }
}
