//! A request's body, read within a size and a time.

use std::future::poll_fn;
use std::pin::Pin;
use std::time::Duration;

use axum::body::{Body, HttpBody};
use axum::http::StatusCode;

use super::refusal::Refusal;

/// How long a client may take to send a body.
const PATIENCE: Duration = Duration::from_secs(30);

/// What is refused is passed over up to this size: a client reads the answer once it has sent its
/// body.
const PASSED_OVER: usize = 64 << 20;

/// All of `body`, if it has at most `limit` bytes.
///
/// Errors: 413, 408, or 400 if the client breaks off.
pub async fn read(body: Body, limit: usize) -> Result<Vec<u8>, Refusal> {
    match tokio::time::timeout(PATIENCE, collect(body, limit)).await {
        Ok(result) => result,
        Err(_) => Err(Refusal::new(
            StatusCode::REQUEST_TIMEOUT,
            format!("the body did not arrive within {} s", PATIENCE.as_secs()),
            "send it faster, or less of it",
        )),
    }
}

/// Reads what nobody wants.
pub async fn pass_over(body: Body) {
    // It is refused anyway, for another reason.
    let _ = read(body, 0).await;
}

async fn collect(mut body: Body, limit: usize) -> Result<Vec<u8>, Refusal> {
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
        } else if size > PASSED_OVER {
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
