//! The thread that talks to clients: one event loop, a limited number of connections, and timeouts
//! for those that do not come to the point.

use std::future::{Future, poll_fn};
use std::net::TcpListener;
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;
use std::thread::JoinHandle;
use std::time::Duration;

use axum::Router;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulShutdown;
use hyper_util::service::TowerToHyperService;
use tokio::sync::{Semaphore, oneshot};
use tokio::time::{sleep, timeout};

use super::patient::Patient;
use crate::error::{Context, Result};

/// Further clients wait in the system's backlog.
const CONNECTIONS: usize = 256;

/// For the head of a request, also of a next one on the same connection.
const HEAD: Duration = Duration::from_secs(15);

/// Bytes of a connection that are read or to be written at a time; a head must fit.
const BUFFER: usize = 64 << 10;

/// Threads for requests and answers that take longer than others should wait.
const ASIDE: usize = 2;

/// For the answers that are still being read when the server ends.
const FAREWELL: Duration = Duration::from_secs(5);

/// The thread, and the way to end it.
pub struct Server {
    thread: JoinHandle<()>,
    end: oneshot::Sender<()>,
}

pub fn start(listener: TcpListener, router: Router) -> Result<Server> {
    listener.set_nonblocking(true)?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .max_blocking_threads(ASIDE)
        .thread_name("http-aside")
        .build()
        .context("cannot start the event loop")?;
    let listener = {
        let _inside = runtime.enter();
        tokio::net::TcpListener::from_std(listener)?
    };
    let (end, ended) = oneshot::channel();
    let thread = std::thread::Builder::new()
        .name("http".into())
        .spawn(move || runtime.block_on(serve(listener, router, ended)))?;
    Ok(Server { thread, end })
}

impl Server {
    /// Accepts nobody any more, lets the answers be read, and ends the thread.
    pub fn finish(self) -> Result<()> {
        // If the thread has ended already, joining says why.
        let _ = self.end.send(());
        let ended = self.thread.join();
        ended.map_err(|_| {
            anyhow::anyhow!("the thread that talks to clients panicked (message above)")
        })
    }
}

async fn serve(listener: tokio::net::TcpListener, router: Router, ended: oneshot::Receiver<()>) {
    let graceful = GracefulShutdown::new();
    {
        let mut ended = pin!(ended);
        let mut accepting = pin!(accept(listener, router, &graceful));
        poll_fn(|cx| match ended.as_mut().poll(cx) {
            Poll::Ready(_) => Poll::Ready(()),
            Poll::Pending => accepting.as_mut().poll(cx),
        })
        .await;
    }
    if timeout(FAREWELL, graceful.shutdown()).await.is_err() {
        tracing::warn!(
            "some connections were cut: their clients had not sent a request, or read an answer, to the end"
        );
    }
}

async fn accept(listener: tokio::net::TcpListener, router: Router, graceful: &GracefulShutdown) {
    let free = Arc::new(Semaphore::new(CONNECTIONS));
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new())
        .header_read_timeout(HEAD)
        .max_buf_size(BUFFER);
    // The semaphore is never closed.
    while let Ok(place) = free.clone().acquire_owned().await {
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                // Too many open files, or a client that has left already.
                tracing::debug!("accept: {error}");
                sleep(Duration::from_millis(50)).await;
                continue;
            }
        };
        // Events are small and must not wait for more.
        let _ = stream.set_nodelay(true);
        let (stream, client) = Patient::new(stream);
        let service = TowerToHyperService::new(router.clone());
        let connection = http.serve_connection(TokioIo::new(stream), service);
        let connection = graceful.watch(connection);
        tokio::spawn(async move {
            let (mut connection, mut left) = (pin!(connection), pin!(client.left()));
            // What can be answered is answered first.
            poll_fn(|cx| match connection.as_mut().poll(cx) {
                Poll::Ready(Ok(())) => Poll::Ready(()),
                Poll::Ready(Err(error)) => {
                    tracing::debug!("connection: {error}");
                    Poll::Ready(())
                }
                Poll::Pending => left.as_mut().poll(cx),
            })
            .await;
            drop(place);
        });
    }
}
