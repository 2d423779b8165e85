//! The page: a document, a style sheet and scripts, all of them in the program.
//!
//! The browser is told to load nothing else, and to run nothing that is not in these scripts.

use axum::http::header::{self, HeaderName, HeaderValue};
use axum::response::{IntoResponse, Response};

/// Pictures are shown from data in answers, and saved from the browser's memory.
pub const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; \
    img-src 'self' data: blob:; connect-src 'self'; base-uri 'none'; form-action 'none'; \
    frame-ancestors 'none'; require-trusted-types-for 'script'";

/// Name, kind and text of the files below /page/.
const FILES: [(&str, &str, &str); 7] = [
    ("page.css", STYLE, include_str!("page/page.css")),
    ("api.js", SCRIPT, include_str!("page/api.js")),
    ("classes.js", SCRIPT, include_str!("page/classes.js")),
    ("save.js", SCRIPT, include_str!("page/save.js")),
    ("draw.js", SCRIPT, include_str!("page/draw.js")),
    (
        "reconstruct.js",
        SCRIPT,
        include_str!("page/reconstruct.js"),
    ),
    ("page.js", SCRIPT, include_str!("page/page.js")),
];

const DOCUMENT: &str = "text/html; charset=utf-8";
const STYLE: &str = "text/css; charset=utf-8";
const SCRIPT: &str = "text/javascript; charset=utf-8";

pub async fn document() -> Response {
    answer(DOCUMENT, include_str!("page/page.html"))
}

/// The file of this name, if the page has it.
pub fn file(name: &str) -> Option<Response> {
    let found = FILES.iter().find(|(known, ..)| *known == name);
    found.map(|(_, kind, text)| answer(kind, text))
}

fn answer(kind: &'static str, text: &'static str) -> Response {
    let headers = [
        (header::CONTENT_TYPE, kind),
        // Another version of the program has another page.
        (header::CACHE_CONTROL, "no-cache"),
    ];
    (headers, text).into_response()
}

/// What every answer says to the browser.
pub fn protect(response: &mut Response) {
    let headers = response.headers_mut();
    let all: [(HeaderName, &'static str); 4] = [
        (header::CONTENT_SECURITY_POLICY, POLICY),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::REFERRER_POLICY, "no-referrer"),
        (
            HeaderName::from_static("cross-origin-resource-policy"),
            "same-origin",
        ),
    ];
    for (name, value) in all {
        headers.insert(name, HeaderValue::from_static(value));
    }
    headers
        .entry(header::CACHE_CONTROL)
        .or_insert(HeaderValue::from_static("no-store"));
}
