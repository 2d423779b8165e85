//! The queue between clients and the model: requests in the order of their arrival, batches of
//! those that draw with equal settings.
//!
//! The first request decides what the next batch is. Other requests with its settings fill the
//! batch up, also past requests with other settings, which are first themselves a batch later. A
//! request with more images than a batch holds is drawn in several.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use axum::http::StatusCode;
use image::RgbImage;
use tokio::sync::{OwnedSemaphorePermit, oneshot};

use super::metrics::{Metrics, Waiting};
use super::refusal::Refusal;
use super::stream::{Event, Outbox, Reconstruction};
use crate::sample::{Sample, SampleOptions};

/// What a client asks for.
pub enum Work {
    Draw(Draw),
    Reconstruct(Upload),
}

pub struct Draw {
    /// Of images 0, 1, 2, …
    pub labels: Vec<u32>,
    pub seed: u64,
    pub options: SampleOptions,
    /// Whether the client wants to see each step.
    pub previews: bool,
    pub outbox: Outbox,
}

pub struct Upload {
    pub bytes: Vec<u8>,
    pub seed: u64,
    pub answer: Answer,
    /// Its place among the uploads that are held in memory.
    pub _place: OwnedSemaphorePermit,
}

/// The way of a reconstruction to its client, which goes it once.
pub struct Answer(Mutex<Option<oneshot::Sender<Result<Reconstruction, Refusal>>>>);

impl Answer {
    pub fn new(sender: oneshot::Sender<Result<Reconstruction, Refusal>>) -> Self {
        Self(Mutex::new(Some(sender)))
    }

    fn lock(&self) -> MutexGuard<'_, Option<oneshot::Sender<Result<Reconstruction, Refusal>>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn send(&self, result: Result<Reconstruction, Refusal>) {
        if let Some(sender) = self.lock().take() {
            // Nobody has to read it.
            let _ = sender.send(result);
        }
    }

    fn is_closed(&self) -> bool {
        self.lock().as_ref().is_none_or(oneshot::Sender::is_closed)
    }
}

/// A request and the way to its client.
pub struct Job {
    pub work: Work,
    /// Images that are not finished.
    open: AtomicUsize,
    /// It is answered, has failed or has lost its client.
    over: AtomicBool,
}

impl Job {
    pub fn new(work: Work) -> Arc<Self> {
        Arc::new(Self {
            open: AtomicUsize::new(images(&work)),
            work,
            over: AtomicBool::new(false),
        })
    }

    pub fn previews(&self) -> bool {
        matches!(&self.work, Work::Draw(draw) if draw.previews)
    }

    /// Sends images of step t of a drawing; `last` finishes them.
    pub fn show(&self, t: usize, images: Vec<(u64, RgbImage)>, last: bool) {
        let Work::Draw(draw) = &self.work else {
            return;
        };
        let count = images.len();
        draw.outbox.show(Event::Images { t, images }, last);
        if last && self.open.fetch_sub(count, SeqCst) == count && !self.ends() {
            draw.outbox.show(Event::Done, true);
        }
    }

    /// Answers an upload, unless it is over.
    pub fn answer(&self, result: Result<Reconstruction, Refusal>) {
        match &self.work {
            Work::Reconstruct(upload) if !self.ends() => upload.answer.send(result),
            _ => {}
        }
    }

    /// Refuses it, unless it is over.
    pub fn fail(&self, refusal: Refusal) {
        match &self.work {
            Work::Reconstruct(_) => self.answer(Err(refusal)),
            Work::Draw(draw) if !self.ends() => draw.outbox.show(Event::Failed(refusal), true),
            Work::Draw(_) => {}
        }
    }

    /// Whether it is over already; now it is.
    fn ends(&self) -> bool {
        self.over.swap(true, SeqCst)
    }

    /// Whether nobody waits for it.
    fn is_over(&self, metrics: &Metrics) -> bool {
        let has_left = match &self.work {
            Work::Draw(draw) => draw.outbox.is_closed(),
            Work::Reconstruct(upload) => upload.answer.is_closed(),
        };
        if has_left && !self.ends() {
            metrics.cancelled.fetch_add(1, SeqCst);
        }
        self.over.load(SeqCst)
    }
}

fn images(work: &Work) -> usize {
    match work {
        Work::Draw(draw) => draw.labels.len(),
        Work::Reconstruct(_) => 1,
    }
}

/// An image of a batch.
pub struct Image {
    pub job: Arc<Job>,
    pub sample: Sample,
}

/// What the model does next.
pub enum Batch {
    Draw {
        options: SampleOptions,
        images: Vec<Image>,
    },
    Reconstruct(Arc<Job>),
}

pub struct Queue {
    state: Mutex<State>,
    arrived: Condvar,
    /// Waiting images.
    limit: usize,
    metrics: Arc<Metrics>,
}

#[derive(Default)]
struct State {
    waiting: VecDeque<Place>,
    closed: bool,
}

struct Place {
    job: Arc<Job>,
    /// Its first image that is in no batch.
    next: usize,
}

impl Place {
    fn images(&self) -> usize {
        images(&self.job.work) - self.next
    }
}

impl Queue {
    pub fn new(limit: usize, metrics: Arc<Metrics>) -> Self {
        Self {
            state: Mutex::default(),
            arrived: Condvar::new(),
            limit,
            metrics,
        }
    }

    /// Waits at the end; returns the number of images that wait before it.
    ///
    /// Errors: 429 if too many images would wait; 503 once the queue is closed.
    pub fn push(&self, job: Arc<Job>) -> Result<usize, Refusal> {
        let mut state = self.lock();
        if state.closed {
            return Err(stopping());
        }
        let (ahead, own) = (waiting(&state).images, images(&job.work));
        if ahead + own > self.limit {
            return Err(Refusal::new(
                StatusCode::TOO_MANY_REQUESTS,
                format!(
                    "{ahead} images are waiting, and {own} more would exceed the limit of {}",
                    self.limit
                ),
                "ask again in a moment, or for fewer images",
            ));
        }
        state.waiting.push_back(Place { job, next: 0 });
        self.arrived.notify_one();
        Ok(ahead)
    }

    /// The next batch of at most `size` images; none if nothing arrives for so long.
    pub fn next(&self, size: usize, patience: Duration) -> Option<Batch> {
        let mut state = self.lock();
        if state.waiting.is_empty() {
            let waited = self.arrived.wait_timeout(state, patience);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        let batch = match &state.waiting.front()?.job.work {
            Work::Reconstruct(_) => Batch::Reconstruct(state.waiting.pop_front()?.job),
            Work::Draw(first) => {
                let options = first.options;
                let images = together(&mut state.waiting, &options, size);
                Batch::Draw { options, images }
            }
        };
        Some(batch)
    }

    /// Whether nobody waits for `job`.
    pub fn is_over(&self, job: &Job) -> bool {
        job.is_over(&self.metrics)
    }

    /// Refuses what waits and what arrives from now on.
    pub fn close(&self) {
        let mut state = self.lock();
        state.closed = true;
        for place in state.waiting.drain(..) {
            place.job.fail(stopping());
        }
    }

    pub fn waiting(&self) -> Waiting {
        waiting(&self.lock())
    }

    /// The state, without requests that nobody waits for.
    fn lock(&self) -> MutexGuard<'_, State> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.waiting.retain(|place| !self.is_over(&place.job));
        state
    }
}

/// Takes up to `size` images with these settings out of the queue.
fn together(waiting: &mut VecDeque<Place>, options: &SampleOptions, size: usize) -> Vec<Image> {
    let mut taken = Vec::new();
    for place in waiting.iter_mut() {
        let Work::Draw(draw) = &place.job.work else {
            continue;
        };
        if draw.options != *options {
            continue;
        }
        let some = place.images().min(size - taken.len());
        for number in place.next..place.next + some {
            taken.push(Image {
                job: place.job.clone(),
                sample: Sample {
                    label: draw.labels[number],
                    seed: draw.seed,
                    number: number as u64,
                },
            });
        }
        place.next += some;
    }
    waiting.retain(|place| place.images() > 0);
    taken
}

fn waiting(state: &State) -> Waiting {
    Waiting {
        requests: state.waiting.len(),
        images: state.waiting.iter().map(Place::images).sum(),
    }
}

fn stopping() -> Refusal {
    Refusal::new(
        StatusCode::SERVICE_UNAVAILABLE,
        "the server is stopping",
        "ask again when it has started again",
    )
}

#[cfg(test)]
mod tests {
    use tokio::sync::Semaphore;

    use super::*;
    use crate::config::SampleConfig;
    use crate::serve::stream::{Inbox, channel};

    type Answered = oneshot::Receiver<Result<Reconstruction, Refusal>>;

    const SOON: Duration = Duration::from_millis(1);

    fn queue(limit: usize) -> Queue {
        Queue::new(limit, Arc::default())
    }

    fn draw(num: u32, seed: u64, cfg: f64) -> (Arc<Job>, Inbox) {
        let mut options = SampleOptions::from(&SampleConfig::default());
        options.cfg = cfg;
        let (outbox, inbox) = channel();
        let work = Work::Draw(Draw {
            labels: (0..num).collect(),
            seed,
            options,
            previews: false,
            outbox,
        });
        (Job::new(work), inbox)
    }

    fn upload() -> (Arc<Job>, Answered) {
        let (answer, answered) = oneshot::channel();
        let place = Arc::new(Semaphore::new(1)).try_acquire_owned();
        let work = Work::Reconstruct(Upload {
            bytes: Vec::new(),
            seed: 0,
            answer: Answer::new(answer),
            _place: place.expect("room"),
        });
        (Job::new(work), answered)
    }

    #[test]
    fn an_upload_whose_client_has_left_is_forgotten() {
        let queue = queue(5);
        let ((left, answered), (waits, mut other)) = (upload(), upload());
        queue.push(left).expect("room");
        queue.push(waits.clone()).expect("room");
        drop(answered);
        match queue.next(1, SOON) {
            Some(Batch::Reconstruct(job)) => assert!(Arc::ptr_eq(&job, &waits)),
            _ => panic!("the other one"),
        }
        assert_eq!(queue.metrics.cancelled.load(SeqCst), 1);
        waits.fail(stopping());
        // Once only.
        waits.fail(stopping());
        assert!(matches!(other.try_recv(), Ok(Err(_))));
    }

    /// Seed and number of the next batch's images.
    fn taken(queue: &Queue, size: usize) -> Vec<(u64, u64)> {
        match queue.next(size, SOON) {
            Some(Batch::Draw { images, .. }) => {
                let of = |image: &Image| (image.sample.seed, image.sample.number);
                images.iter().map(of).collect()
            }
            _ => Vec::new(),
        }
    }

    #[test]
    fn a_batch_holds_equal_settings_in_the_order_of_arrival() {
        let queue = queue(100);
        let jobs = [
            draw(3, 1, 2.0),
            draw(1, 2, 5.0),
            draw(2, 3, 2.0),
            draw(1, 4, 5.0),
        ];
        for ((job, _), ahead) in jobs.iter().zip([0, 3, 4, 6]) {
            assert_eq!(queue.push(job.clone()), Ok(ahead));
        }
        assert_eq!(taken(&queue, 4), [(1, 0), (1, 1), (1, 2), (3, 0)]);
        assert_eq!(taken(&queue, 4), [(2, 0), (4, 0)]);
        assert_eq!(taken(&queue, 4), [(3, 1)]);
        assert_eq!(taken(&queue, 4), []);
    }

    #[test]
    fn too_much_is_refused_and_who_leaves_makes_room() {
        let queue = queue(5);
        let (first, inbox) = draw(3, 1, 2.0);
        assert_eq!(queue.push(first), Ok(0));
        let (second, _kept) = draw(3, 2, 2.0);
        let refusal = queue.push(second.clone()).expect_err("too much");
        assert_eq!(refusal.status, StatusCode::TOO_MANY_REQUESTS);
        assert_eq!(
            queue.waiting(),
            Waiting {
                requests: 1,
                images: 3
            }
        );
        drop(inbox);
        assert_eq!(queue.push(second), Ok(0));
        assert_eq!(queue.metrics.cancelled.load(SeqCst), 1);
        assert_eq!(taken(&queue, 9).len(), 3);
    }

    #[test]
    fn a_closed_queue_refuses_what_waits_and_what_comes() {
        let queue = queue(5);
        let ((first, mut inbox), (second, _other)) = (draw(1, 1, 2.0), draw(1, 2, 2.0));
        queue.push(first).expect("room");
        let (upload, mut answered) = upload();
        queue.push(upload).expect("room");
        queue.close();
        let refused = |event| match event {
            Some(Event::Failed(refusal)) => refusal.status == StatusCode::SERVICE_UNAVAILABLE,
            _ => false,
        };
        assert!(refused(inbox.try_next()));
        assert!(matches!(answered.try_recv(), Ok(Err(_))));
        assert!(queue.push(second).is_err());
        assert!(queue.next(1, SOON).is_none());
    }
}
