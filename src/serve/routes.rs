//! The routes: the page's files and the API.

use std::sync::Arc;

use axum::Router;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode, Uri, header};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use image::RgbImage;
use serde_json::{Value, json};
use tokio::sync::{Semaphore, oneshot};

use super::access::{self, Token};
use super::facts::Facts;
use super::metrics::Metrics;
use super::queue::{Answer, Draw, Job, Queue, Upload, Work};
use super::refusal::Refusal;
use super::request::Drawing;
use super::stream::{Event, Events, Inbox, Reconstruction, channel, lost};
use super::{body, page, picture};
use crate::sample::{Scale, grid};

/// The body of a request to draw: options.
const DRAWING_BYTES: usize = 64 << 10;

/// An encoded image.
pub const UPLOAD_BYTES: usize = 16 << 20;

/// Encoded images that are held in memory: on their way, waiting, or being decoded.
const UPLOADS: usize = 8;

/// What the handlers share.
pub struct Shared {
    facts: Facts,
    token: Option<Token>,
    queue: Arc<Queue>,
    metrics: Arc<Metrics>,
    uploads: Arc<Semaphore>,
}

impl Shared {
    pub fn new(
        facts: Facts,
        token: Option<Token>,
        queue: &Arc<Queue>,
        metrics: &Arc<Metrics>,
    ) -> Arc<Self> {
        Arc::new(Self {
            facts,
            token,
            queue: queue.clone(),
            metrics: metrics.clone(),
            uploads: Arc::new(Semaphore::new(UPLOADS)),
        })
    }
}

pub fn router(shared: Arc<Shared>) -> Router {
    Router::new()
        .route("/", get(page::document))
        .route("/page/{name}", get(page_file))
        .route("/healthz", get(|| async { "ok\n" }))
        .route("/metrics", get(metrics))
        .route("/v1/classes", get(classes))
        .route("/v1/images", post(images))
        .route("/v1/reconstruct", post(reconstruct))
        .fallback(unknown)
        .method_not_allowed_fallback(not_allowed)
        .layer(from_fn_with_state(shared.clone(), guard))
        .with_state(shared)
}

/// Around every route: access, counting, and what browsers are told.
async fn guard(State(shared): State<Arc<Shared>>, request: Request, next: Next) -> Response {
    let path = request.uri().path();
    let route = named(path);
    let mut response = match access::check(shared.token.as_ref(), path, request.headers()) {
        Ok(()) => next.run(request).await,
        Err(refusal) => {
            body::pass_over_strangers(request).await;
            refusal.into_response()
        }
    };
    shared.metrics.answered(route, response.status().as_u16());
    page::protect(&mut response);
    response
}

/// A path's name in the metrics; a client cannot invent any.
fn named(path: &str) -> &'static str {
    const KNOWN: [&str; 6] = [
        "/",
        "/healthz",
        "/metrics",
        "/v1/classes",
        "/v1/images",
        "/v1/reconstruct",
    ];
    let found = KNOWN.into_iter().find(|known| *known == path);
    found.unwrap_or("other")
}

async fn page_file(uri: Uri) -> Result<Response, Refusal> {
    let name = uri.path().strip_prefix("/page/");
    match name.and_then(page::file) {
        Some(file) => Ok(file),
        None => Err(nothing()),
    }
}

async fn unknown(request: Request) -> Refusal {
    body::pass_over_strangers(request).await;
    nothing()
}

fn nothing() -> Refusal {
    Refusal::new(
        StatusCode::NOT_FOUND,
        "there is nothing here",
        "the page is at /; the API is /v1/classes, /v1/images and /v1/reconstruct",
    )
}

async fn not_allowed(request: Request) -> Refusal {
    body::pass_over_strangers(request).await;
    Refusal::new(
        StatusCode::METHOD_NOT_ALLOWED,
        "this path takes another method",
        "GET /v1/classes, POST /v1/images, POST /v1/reconstruct",
    )
}

async fn metrics(State(shared): State<Arc<Shared>>) -> Response {
    let text = shared.metrics.text(shared.queue.waiting());
    let kind = [(header::CONTENT_TYPE, "text/plain; version=0.0.4")];
    (kind, text).into_response()
}

async fn classes(State(shared): State<Arc<Shared>>) -> Response {
    let kind = [(header::CONTENT_TYPE, "application/json")];
    (kind, shared.facts.listing.clone()).into_response()
}

/// What the client wants to get, by its `Accept`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Form {
    Json,
    Png,
    Events,
}

impl Form {
    fn of(headers: &HeaderMap) -> Self {
        let all = headers.get_all(header::ACCEPT).iter();
        let types = all.filter_map(|value| value.to_str().ok());
        let types: Vec<&str> = types.flat_map(|value| value.split(',')).collect();
        let accepts = |wanted| types.iter().any(|given| is_wanted(given, wanted));
        match () {
            () if accepts("text/event-stream") => Form::Events,
            () if accepts("image/png") => Form::Png,
            () => Form::Json,
        }
    }
}

/// Whether this part of an `Accept` is of that type, and not refused by `q=0`.
fn is_wanted(given: &str, wanted: &str) -> bool {
    let mut parameters = given.split(';').skip(1);
    let is_refused = parameters.any(|parameter| {
        let weight = parameter.split_once('=');
        let weight = weight.filter(|(name, _)| name.trim().eq_ignore_ascii_case("q"));
        weight.and_then(|(_, value)| value.trim().parse().ok()) == Some(0.0)
    });
    is_type(given, wanted) && !is_refused
}

/// Whether a media type is `wanted`, whatever its parameters.
fn is_type(given: &str, wanted: &str) -> bool {
    let name = given.split(';').next().unwrap_or_default();
    name.trim().eq_ignore_ascii_case(wanted)
}

async fn images(State(shared): State<Arc<Shared>>, request: Request) -> Result<Response, Refusal> {
    let (head, body) = request.into_parts();
    let body = body::read(&head.headers, body, DRAWING_BYTES).await?;
    let kind = head.headers.get(header::CONTENT_TYPE);
    let kind = kind.and_then(|kind| kind.to_str().ok());
    if !kind.is_some_and(|kind| is_type(kind, "application/json")) {
        return Err(Refusal::new(
            StatusCode::UNSUPPORTED_MEDIA_TYPE,
            "the body must be JSON",
            "send `Content-Type: application/json`",
        ));
    }
    let form = Form::of(&head.headers);
    let facts = &shared.facts;
    let with = shared.clone();
    let drawing = aside(move || Drawing::read(&body, &with.facts)).await?;
    let about = |number: u64| {
        let index = drawing.labels[number as usize];
        json!({"number": number, "index": index, "class": facts.classes.title(index)})
    };
    let numbers = 0..drawing.labels.len() as u64;
    let mut answer = json!({
        "seed": drawing.seed,
        "command": drawing.command,
        "notes": drawing.notes,
        "images": numbers.map(about).collect::<Vec<_>>(),
    });
    let (outbox, inbox) = channel();
    let work = Work::Draw(Draw {
        labels: drawing.labels.clone(),
        seed: drawing.seed,
        options: drawing.options,
        previews: form == Form::Events,
        outbox,
    });
    let ahead = shared.queue.push(Job::new(work))?;
    match form {
        Form::Events => {
            answer["steps"] = json!(facts.steps);
            answer["ahead"] = json!(ahead);
            let kind = [(header::CONTENT_TYPE, "text/event-stream")];
            let events = Events::new(inbox, facts.steps, &answer);
            Ok((kind, Body::from_stream(events)).into_response())
        }
        Form::Png => {
            let images: Vec<RgbImage> = drawn(inbox).await?.into_iter().map(|(_, x)| x).collect();
            aside(move || png(&sheet(images)?, drawing.seed)).await
        }
        Form::Json => {
            let images = drawn(inbox).await?;
            let whole = move || {
                for (number, image) in images {
                    answer["images"][number as usize]["png"] = picture::text(&image)?.into();
                }
                Ok(json_answer(&answer))
            };
            aside(whole).await
        }
    }
}

/// Does what may take longer than other clients should wait, on another thread.
async fn aside<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Refusal> + Send + 'static,
) -> Result<T, Refusal> {
    let done = tokio::task::spawn_blocking(work).await;
    done.unwrap_or_else(|_| Err(lost()))
}

/// The finished images, by number.
async fn drawn(mut inbox: Inbox) -> Result<Vec<(u64, RgbImage)>, Refusal> {
    let mut all = Vec::new();
    loop {
        match inbox.next().await {
            Event::Images { images, .. } => all.extend(images),
            Event::Failed(refusal) => return Err(refusal),
            Event::Done => break,
        }
    }
    all.sort_by_key(|(number, _)| *number);
    Ok(all)
}

/// The image, or all of them on a sheet of their own size.
fn sheet(mut images: Vec<RgbImage>) -> Result<RgbImage, Refusal> {
    match images.len() {
        1 => Ok(images.remove(0)),
        count => {
            let columns = (count as f64).sqrt().ceil() as usize;
            let sheet = grid(&images, columns, Scale::Times(1));
            sheet.map_err(|e| Refusal::of(StatusCode::UNPROCESSABLE_ENTITY, &e))
        }
    }
}

fn png(image: &RgbImage, seed: u64) -> Result<Response, Refusal> {
    let headers = [
        ("content-type", HeaderValue::from_static("image/png")),
        ("x-rdpm-seed", HeaderValue::from(seed)),
    ];
    Ok((headers, picture::png(image)?).into_response())
}

fn json_answer(answer: &Value) -> Response {
    let kind = [(header::CONTENT_TYPE, "application/json")];
    (kind, answer.to_string()).into_response()
}

async fn reconstruct(
    State(shared): State<Arc<Shared>>,
    request: Request,
) -> Result<Response, Refusal> {
    let (head, body) = request.into_parts();
    let form = Form::of(&head.headers);
    // Before the body is read, so that memory is bounded.
    let Ok(place) = shared.uploads.clone().try_acquire_owned() else {
        body::pass_over(&head.headers, body).await;
        return Err(Refusal::new(
            StatusCode::TOO_MANY_REQUESTS,
            format!("{UPLOADS} images are being reconstructed or wait for it"),
            "ask again in a moment",
        ));
    };
    let bytes = body::read(&head.headers, body, UPLOAD_BYTES).await?;
    let seed = seed(&head.uri)?;
    if bytes.is_empty() {
        return Err(Refusal::impossible(
            "the body is empty",
            "send an image file as the body",
        ));
    }
    let (answer, result) = oneshot::channel();
    let upload = Upload {
        bytes,
        seed,
        answer: Answer::new(answer),
        _place: place,
    };
    shared.queue.push(Job::new(Work::Reconstruct(upload)))?;
    let result = result.await.unwrap_or_else(|_| Err(lost()))?;
    let told = move || match (form, result.steps.last()) {
        (Form::Png, Some(last)) => png(last, seed),
        _ => Ok(json_answer(&described(&result, seed)?)),
    };
    aside(told).await
}

fn described(result: &Reconstruction, seed: u64) -> Result<Value, Refusal> {
    let steps = result.steps.iter().map(picture::text);
    Ok(json!({
        "seed": seed,
        "psnr": result.psnr,
        "original": picture::text(&result.original)?,
        "steps": steps.collect::<Result<Vec<_>, _>>()?,
        "codes": result.codes,
    }))
}

/// `?seed=N`; 0 without it.
fn seed(uri: &Uri) -> Result<u64, Refusal> {
    let Some(query) = uri.query().filter(|query| !query.is_empty()) else {
        return Ok(0);
    };
    let value = query.strip_prefix("seed=");
    value.and_then(|value| value.parse().ok()).ok_or_else(|| {
        let query: String = query.chars().take(60).collect();
        Refusal::impossible(
            format!("the query is `{query}`"),
            "it may be seed=N, with N from 0 to 18446744073709551615",
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_media_type_is_its_name_in_any_case_without_parameters() {
        for given in [
            "application/json",
            "Application/JSON",
            " application/json ;charset=utf-8",
        ] {
            assert!(is_type(given, "application/json"), "{given}");
        }
        for given in ["application/jsonx", "text/plain; application/json", ""] {
            assert!(!is_type(given, "application/json"), "{given}");
        }
    }

    #[test]
    fn the_form_of_an_answer_is_what_is_accepted() {
        let form = |accept: &str| {
            let value = HeaderValue::from_str(accept).expect("a header");
            Form::of(&HeaderMap::from_iter([(header::ACCEPT, value)]))
        };
        assert_eq!(form("image/png"), Form::Png);
        assert_eq!(form("text/html, IMAGE/PNG;q=.8"), Form::Png);
        assert_eq!(form("image/png;q=0, application/json"), Form::Json);
        assert_eq!(form("image/png; Q=0.0"), Form::Json);
        assert_eq!(form("image/pngx, */*"), Form::Json);
        assert_eq!(form("image/png, text/event-stream"), Form::Events);
        assert_eq!(Form::of(&HeaderMap::new()), Form::Json);
    }
}
