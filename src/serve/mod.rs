//! `rdpm serve`: a trained model behind HTTP, as a page and as JSON.
//!
//! One thread talks to clients ([`connections`], [`routes`]), and the thread that calls [`run`]
//! computes ([`worker`]). Between them is one [`queue`]: requests wait there, and those that draw
//! with equal settings share a batch. A request whose client has left is dropped, in the queue or
//! between two steps.

mod access;
mod body;
mod connections;
mod facts;
mod metrics;
mod page;
mod patient;
mod picture;
mod queue;
mod refusal;
mod request;
mod routes;
mod stream;
mod worker;

use std::net::TcpListener;
use std::sync::Arc;

use crate::error::Result;
use crate::interrupt::Interrupt;
use crate::sample::Pretrained;

use facts::Facts;
use metrics::Metrics;
use queue::Queue;
use routes::Shared;

pub use access::Token;

/// What the user of the command line may choose.
#[derive(Debug)]
pub struct Settings {
    /// Who has it may use the API; none: who reaches this machine's loopback address.
    pub token: Option<Token>,
    /// Images of one request.
    pub num: usize,
    /// Images of all waiting requests.
    pub queue: usize,
    /// Images that are drawn together.
    pub batch: usize,
}

/// Serves `model` at `listener` until a signal asks to stop; then what is running is finished and
/// answered, and what is waiting is refused. `ready` is called once it answers.
///
/// Errors: the model is a tokenizer only; no thread or timer can be had; that of `ready`.
pub fn run(
    model: &Pretrained,
    listener: TcpListener,
    settings: Settings,
    interrupt: &Interrupt,
    ready: impl FnOnce() -> Result<()>,
) -> Result<()> {
    let metrics = Arc::new(Metrics::default());
    let queue = Arc::new(Queue::new(settings.queue, metrics.clone()));
    let worker = worker::Worker::new(model, &queue, &metrics, interrupt, settings.batch)?;
    let shared = Shared::new(
        Facts::of(model, &settings)?,
        settings.token,
        &queue,
        &metrics,
    );
    let server = connections::start(listener, routes::router(shared))?;
    ready()?;
    worker.run();
    server.finish()
}
