//! A request's body, read within a size and a time.

use std::future::poll_fn;
use std::pin::Pin;
use std::time::Duration;

use axum::body::{Body, HttpBody};
use axum::extract::Request;
use axum::http::{HeaderMap, StatusCode, header};

use super::refusal::Refusal;

/// How long a client may take to send a body.
const PATIENCE: Duration = Duration::from_secs(30);

/// What is refused is passed over up to this size: a client reads the answer once it has sent its
/// body.
const PASSED_OVER: usize = 64 << 20;

/// Who has no access, or asks for what there is not, must not keep a connection from others.
const STRANGERS_PATIENCE: Duration = Duration::from_secs(1);
const STRANGERS_BYTES: usize = 1 << 20;

/// All of `body`, if it has at most `limit` bytes.
///
/// Errors: 413, 408, or 400 if the client breaks off.
pub async fn read(head: &HeaderMap, body: Body, limit: usize) -> Result<Vec<u8>, Refusal> {
    if is_too_large(head, &body, limit, PASSED_OVER) {
        return Err(too_large(limit));
    }
    match tokio::time::timeout(PATIENCE, collect(body, limit, PASSED_OVER)).await {
        Ok(result) => result,
        Err(_) => Err(Refusal::new(
            StatusCode::REQUEST_TIMEOUT,
            format!("the body did not arrive within {} s", PATIENCE.as_secs()),
            "send it faster, or less of it",
        )),
    }
}

/// Reads what is refused for another reason.
pub async fn pass_over(head: &HeaderMap, body: Body) {
    // That it is too large is such a reason.
    let _ = read(head, body, 0).await;
}

/// The same for a client that has nothing to say here.
pub async fn pass_over_strangers(request: Request) {
    let (head, body) = request.into_parts();
    if !is_too_large(&head.headers, &body, 0, STRANGERS_BYTES) {
        let passed = collect(body, 0, STRANGERS_BYTES);
        let _ = tokio::time::timeout(STRANGERS_PATIENCE, passed).await;
    }
}

/// Whether `body` is not even begun to be read: its announced size is above `limit`, and it is more
/// than would be passed over, or the client waits for leave to send it (which reading gives).
fn is_too_large(head: &HeaderMap, body: &Body, limit: usize, passed_over: usize) -> bool {
    let announced = HttpBody::size_hint(body).lower();
    let waits = head.contains_key(header::EXPECT);
    announced > limit as u64 && (waits || announced > passed_over as u64)
}

async fn collect(mut body: Body, limit: usize, passed_over: usize) -> Result<Vec<u8>, Refusal> {
    let (mut bytes, mut size) = (Vec::new(), 0);
    while let Some(frame) = poll_fn(|cx| Pin::new(&mut body).poll_frame(cx)).await {
        let frame = frame.map_err(|e| {
            Refusal::new(
                StatusCode::BAD_REQUEST,
                format!("the body breaks off: {e}"),
                "send it again",
            )
        })?;
        let Ok(data) = frame.into_data() else {
            continue;
        };
        size += data.len();
        if size <= limit {
            bytes.extend_from_slice(&data);
        } else if size > passed_over {
            break;
        } else {
            bytes = Vec::new();
        }
    }
    match size > limit {
        true => Err(too_large(limit)),
        false => Ok(bytes),
    }
}

fn too_large(limit: usize) -> Refusal {
    let limit = match limit >> 20 {
        0 => format!("{} KiB", limit >> 10),
        mib => format!("{mib} MiB"),
    };
    Refusal::new(
        StatusCode::PAYLOAD_TOO_LARGE,
        format!("the body is larger than {limit}"),
        "send less, or a smaller image",
    )
}
